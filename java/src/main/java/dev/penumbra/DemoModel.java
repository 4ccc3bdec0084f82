package dev.penumbra;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.List;

/** The small OPT checkpoint of the artifact {@code penumbra-demo-model}, which must be on the class path. */
public final class DemoModel {

    private static final String RESOURCES = "/dev/penumbra/demo/opt-6m/";
    private static final List<String> FILES = List.of("config.json", "model.safetensors", "tokenizer.json");

    private DemoModel() {
    }

    /** Writes the checkpoint as a Hugging Face model folder, over what is there, and returns the folder. */
    public static Path extract(Path folder) throws IOException {
        Files.createDirectories(folder);
        for (String file : FILES) {
            try (InputStream in = DemoModel.class.getResourceAsStream(RESOURCES + file)) {
                if (in == null) {
                    throw new IOException("expected " + RESOURCES + file
                            + " on the class path, from the artifact penumbra-demo-model, found none");
                }
                Files.copy(in, folder.resolve(file), StandardCopyOption.REPLACE_EXISTING);
            }
        }
        return folder;
    }
}
