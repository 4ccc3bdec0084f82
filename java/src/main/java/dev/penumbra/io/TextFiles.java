package dev.penumbra.io;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;
import tools.jackson.core.JacksonException;

/** Files of text. */
public final class TextFiles {

    private static final String SOURCE = " \\(start marker at \\[Source: .*?]\\)| at \\[Source: .*?]";

    private TextFiles() {
    }

    /**
     * A whole file.
     *
     * @throws IOException when it cannot be read; naming it when it is a folder or not UTF-8, which Java's own message does not
     */
    public static String read(Path file) throws IOException {
        requireNoFolder(file);
        try {
            return Files.readString(file);
        } catch (CharacterCodingException notText) {
            throw new IOException(file + ": expected text in UTF-8, found other bytes", notText);
        }
    }

    /** @throws IOException naming a folder that stands where a file is to be read: Java's own message names none */
    public static void requireNoFolder(Path file) throws IOException {
        if (Files.isDirectory(file)) {
            throw new IOException(file + ": expected a file, found a folder");
        }
    }

    /**
     * What a parser found wrong, in one line, as the end of a message: without its remarks on a source that it does not show.
     */
    public static String problem(JacksonException broken) {
        return broken.getOriginalMessage().lines().findFirst().orElse("").replaceAll(SOURCE, "");
    }
}
