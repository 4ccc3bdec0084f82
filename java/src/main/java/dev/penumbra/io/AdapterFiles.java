package dev.penumbra.io;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/**
 * An adapter's two files, which never disagree: a configuration is not to be found beside another adapter's weights, by this
 * library or by PEFT, whenever a process that replaces them is killed.
 *
 * <p>Two names cannot be moved at once. So a new pair is written to a folder of its own, and giving that folder its name
 * {@value #COMMITTED} is what replaces the adapter: {@link #locate} prefers what is in it. Then the old configuration goes,
 * and the new files come one by one. In between PEFT finds no adapter here; the next writer completes it.
 */
final class AdapterFiles {

    static final String CONFIG = "adapter_config.json";
    static final String WEIGHTS = "adapter_model.safetensors";
    private static final String COMMITTED = ".adapter.new";

    private AdapterFiles() {
    }

    /** Where a file of the adapter in {@code directory} is, or would be. */
    static Path locate(Path directory, String name) {
        Path committed = directory.resolve(COMMITTED).resolve(name);
        return Files.exists(committed) ? committed : directory.resolve(name);
    }

    static boolean isAdapter(Path directory) {
        return Files.exists(locate(directory, CONFIG));
    }

    /** Lets {@code writer} write both files to a folder it is given, and then replaces the adapter in {@code directory}. */
    static void replace(Path directory, AtomicFiles.Writer writer) throws IOException {
        AtomicFiles.stage(directory.resolve(WEIGHTS), staged -> {
            complete(directory);
            writer.writeTo(staged);
            Path config = directory.resolve(CONFIG);
            if (Files.exists(config) && Files.mismatch(config, staged.resolve(CONFIG)) < 0) {
                // The weights alone change.
                takeFrom(staged, directory);
            } else {
                AtomicFiles.move(staged, directory.resolve(COMMITTED));
                AtomicFiles.force(directory);
                complete(directory);
            }
        });
    }

    /** Ends what a killed writer had decided. */
    static void complete(Path directory) throws IOException {
        Path committed = directory.resolve(COMMITTED);
        if (!Files.exists(committed)) {
            return;
        }
        if (Files.exists(committed.resolve(CONFIG))) {
            Files.deleteIfExists(directory.resolve(CONFIG));
        }
        takeFrom(committed, directory);
        Files.delete(committed);
    }

    private static void takeFrom(Path folder, Path directory) throws IOException {
        // The configuration last: PEFT looks for it first.
        for (String name : List.of(WEIGHTS, CONFIG)) {
            if (Files.exists(folder.resolve(name))) {
                AtomicFiles.move(folder.resolve(name), directory.resolve(name));
            }
        }
        AtomicFiles.force(directory);
    }
}
