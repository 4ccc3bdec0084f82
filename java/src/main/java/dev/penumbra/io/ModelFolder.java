package dev.penumbra.io;

import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * A Hugging Face model folder: {@code config.json} and the weights, in {@code model.safetensors} or in the shards that
 * {@code model.safetensors.index.json} names. Weights are mapped, not read; closing the folder ends their tensors.
 */
public final class ModelFolder implements AutoCloseable {

    private static final String SINGLE = "model.safetensors";
    private static final String INDEX = "model.safetensors.index.json";
    private static final JsonMapper JSON = new JsonMapper();

    private final Path directory;
    private final JsonNode config;
    private final Map<String, SafetensorsFile> files = new LinkedHashMap<>();
    private final Map<String, SafetensorsFile> fileOf = new TreeMap<>();

    private ModelFolder(Path directory, JsonNode config) {
        this.directory = directory;
        this.config = config;
    }

    /**
     * Opens a folder and checks that its files are there and well formed.
     *
     * @throws IOException when a file is missing or cannot be read
     * @throws SafetensorsException when a weights file is malformed
     */
    public static ModelFolder open(Path directory) throws IOException {
        if (!Files.isDirectory(directory)) {
            throw new IOException(directory + ": expected a model folder, found no folder");
        }
        ModelFolder folder = new ModelFolder(directory, readJson(directory.resolve("config.json")));
        try {
            if (Files.exists(directory.resolve(SINGLE))) {
                SafetensorsFile file = folder.openFile(SINGLE);
                file.entries().keySet().forEach(name -> folder.fileOf.put(name, file));
            } else if (Files.exists(directory.resolve(INDEX))) {
                folder.openShards(directory.resolve(INDEX));
            } else {
                throw new IOException(directory + ": expected " + SINGLE + " or " + INDEX + ", found neither");
            }
            return folder;
        } catch (IOException | RuntimeException failure) {
            folder.close();
            throw failure;
        }
    }

    private void openShards(Path index) throws IOException {
        for (Map.Entry<String, JsonNode> entry : readJson(index).path("weight_map").properties()) {
            String shard = entry.getValue().asString();
            if (!shard.equals(Path.of(shard).getFileName().toString())) {
                throw new IOException(
                        index + ": tensor " + entry.getKey() + ": expected the name of a file beside it, found " + shard);
            }
            SafetensorsFile file = openFile(shard);
            if (!file.entries().containsKey(entry.getKey())) {
                throw new IOException(
                        index + ": expected tensor " + entry.getKey() + " in " + shard + ", found none of that name there");
            }
            fileOf.put(entry.getKey(), file);
        }
        if (fileOf.isEmpty()) {
            throw new IOException(index + ": expected a weight_map with tensors, found none");
        }
    }

    private SafetensorsFile openFile(String name) throws IOException {
        SafetensorsFile open = files.get(name);
        if (open == null) {
            Path path = directory.resolve(name);
            if (!Files.exists(path)) {
                throw new IOException(path + ": expected a shard that " + INDEX + " names, found no file");
            }
            open = SafetensorsFile.open(path);
            files.put(name, open);
        }
        return open;
    }

    private static JsonNode readJson(Path file) throws IOException {
        if (!Files.exists(file)) {
            throw new IOException(file + ": expected a file, found none");
        }
        try {
            return JSON.readTree(Files.readString(file));
        } catch (JacksonException broken) {
            throw new IOException(file + ": expected JSON: " + broken.getOriginalMessage(), broken);
        }
    }

    public Path directory() {
        return directory;
    }

    /** The contents of {@code config.json}. */
    public JsonNode config() {
        return config;
    }

    public Set<String> tensorNames() {
        return Collections.unmodifiableSet(fileOf.keySet());
    }

    public boolean has(String name) {
        return fileOf.containsKey(name);
    }

    /** {@code model.decoder.} or {@code decoder.}, whichever this checkpoint's names start with. */
    public String decoderPrefix() throws IOException {
        for (String prefix : new String[]{"model.decoder.", "decoder."}) {
            if (fileOf.keySet().stream().anyMatch(name -> name.startsWith(prefix))) {
                return prefix;
            }
        }
        throw new IOException(directory + ": expected tensors under model.decoder. or decoder., found "
                + fileOf.keySet().stream().limit(3).toList());
    }

    /** A mapped view; the message names file and tensor when there is none, or when its shape is another. */
    public Tensor tensor(String name, long... shape) throws IOException {
        SafetensorsFile file = fileOf.get(name);
        if (file == null) {
            throw new IOException(directory + ": expected a tensor " + name + ", found none of that name");
        }
        Tensor tensor = file.tensor(name);
        if (!tensor.dtype().isFloat()) {
            throw new IOException(file.file() + ": tensor " + name + ": expected F32, BF16 or F16, found " + tensor.dtype());
        }
        if (shape.length > 0 && !tensor.shape().equals(Shape.of(shape))) {
            throw new IOException(
                    file.file() + ": tensor " + name + ": expected shape " + Shape.of(shape) + ", found " + tensor.shape());
        }
        return tensor;
    }

    @Override
    public void close() {
        files.values().forEach(SafetensorsFile::close);
        files.clear();
        fileOf.clear();
    }
}
