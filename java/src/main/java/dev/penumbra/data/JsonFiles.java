package dev.penumbra.data;

import dev.penumbra.io.TextFiles;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** JSON files of a model folder. */
final class JsonFiles {

    private static final JsonMapper JSON = new JsonMapper();

    private JsonFiles() {
    }

    /** @throws IOException naming the file when it is no text, or no JSON */
    static JsonNode read(Path file) throws IOException {
        try {
            return JSON.readTree(TextFiles.read(file));
        } catch (JacksonException broken) {
            throw new IOException(file + ": expected JSON: " + TextFiles.problem(broken), broken);
        }
    }

    /** The file's contents, or an empty object when there is no file. */
    static JsonNode readIfPresent(Path file) throws IOException {
        return Files.exists(file) ? read(file) : JSON.createObjectNode();
    }
}
