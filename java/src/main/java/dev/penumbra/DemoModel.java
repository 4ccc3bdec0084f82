package dev.penumbra;

import dev.penumbra.io.AtomicFiles;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;

/** The small OPT checkpoint of the artifact {@code penumbra-demo-model}, which must be on the class path. */
public final class DemoModel {

    private static final String RESOURCES = "/dev/penumbra/demo/opt-6m/";
    private static final List<String> FILES = List.of("config.json", "model.safetensors", "tokenizer.json");

    private DemoModel() {
    }

    /**
     * Writes the checkpoint as a Hugging Face model folder, unless it is there already, and returns the folder.
     *
     * @throws IOException naming a file of another model that is there, which stays as it is, or one that cannot be written
     */
    public static Path extract(Path folder) throws IOException {
        for (String file : FILES) {
            try (InputStream in = DemoModel.class.getResourceAsStream(RESOURCES + file)) {
                if (in == null) {
                    throw new IOException("expected " + RESOURCES + file
                            + " on the class path, from the artifact penumbra-demo-model, found none");
                }
                keep(in.readAllBytes(), folder.resolve(file));
            }
        }
        return folder;
    }

    private static void keep(byte[] bundled, Path file) throws IOException {
        if (!Files.exists(file)) {
            AtomicFiles.write(file, path -> Files.write(path, bundled));
        } else if (!Arrays.equals(Files.readAllBytes(file), bundled)) {
            throw new IOException(
                    file + ": expected the bundled model's file or none, found another model's: move it away or"
                            + " choose another folder");
        }
    }
}
