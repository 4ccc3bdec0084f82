package dev.penumbra.io;

import static java.util.stream.Collectors.joining;

import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.AccessDeniedException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
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
     * @throws IOException naming the file when it cannot be read, or is not UTF-8, which Java's own message does not
     */
    public static String read(Path file) throws IOException {
        requireFile(file);
        try {
            return Files.readString(file);
        } catch (CharacterCodingException notText) {
            throw new IOException(file + ": expected text in UTF-8, found other bytes", notText);
        }
    }

    /**
     * Checks a file that is to be read: Java's own messages say the name alone, or nothing of a folder.
     *
     * @throws IOException naming the file and saying that there is none, or a folder, or no permission to read it
     */
    public static void requireFile(Path file) throws IOException {
        if (Files.isDirectory(file)) {
            throw new IOException(file + ": expected a file, found a folder");
        }
        if (!Files.exists(file)) {
            throw new NoSuchFileException(file.toString(), null, "expected a file, found none");
        }
        if (!Files.isReadable(file)) {
            throw new AccessDeniedException(file.toString(), null, "expected to be allowed to read it, found no permission");
        }
    }

    /**
     * What a parser found wrong, in one line, as the end of a message: without its remarks on a source that it does not show.
     */
    public static String problem(JacksonException broken) {
        // What is indented tells of the source.
        return broken.getOriginalMessage().lines().filter(line -> !line.startsWith(" ")).collect(joining(": "))
                .replaceAll(SOURCE, "");
    }
}
