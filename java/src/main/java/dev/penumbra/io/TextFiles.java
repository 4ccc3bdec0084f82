package dev.penumbra.io;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;

/** Files of text. */
public final class TextFiles {

    private TextFiles() {
    }

    /**
     * A whole file.
     *
     * @throws IOException when it cannot be read; naming it when it is not UTF-8, which Java's own message does not
     */
    public static String read(Path file) throws IOException {
        try {
            return Files.readString(file);
        } catch (CharacterCodingException notText) {
            throw new IOException(file + ": expected text in UTF-8, found other bytes", notText);
        }
    }
}
