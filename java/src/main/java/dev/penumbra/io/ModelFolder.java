package dev.penumbra.io;

import dev.penumbra.internal.Counted;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.Collections;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.BiConsumer;
import java.util.stream.Stream;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * A Hugging Face model folder: {@code config.json} and the weights, in one file or in the shards that an index names;
 * safetensors where there are both, else {@code pytorch_model.bin}. Weights are mapped, not read; closing the folder ends
 * their tensors.
 */
public final class ModelFolder implements AutoCloseable {

    /** Where weights are looked for, in this order; each also as shards, under its name with {@link #INDEX}. */
    private static final List<String> WEIGHTS = List.of("model.safetensors", "pytorch_model.bin");
    private static final String CONFIG = "config.json";
    private static final String INDEX = ".index.json";
    /** Small beside the weights of any layer, large beside a page. */
    private static final long HASHED_AT_ONCE = 1L << 24;
    private static final long SAMPLED = 4096;
    private static final JsonMapper JSON = new JsonMapper();

    private final Path directory;
    private final JsonNode config;
    private final Map<String, WeightsFile> files = new LinkedHashMap<>();
    private final Map<String, WeightsFile> fileOf = new TreeMap<>();

    private ModelFolder(Path directory, JsonNode config) {
        this.directory = directory;
        this.config = config;
    }

    /**
     * Opens a folder and checks that its files are there and well formed.
     *
     * @throws IOException when a file is missing or cannot be read
     * @throws WeightsFileException when a weights file is malformed
     */
    public static ModelFolder open(Path directory) throws IOException {
        requireFolder(directory);
        ModelFolder folder = new ModelFolder(directory, readJson(directory.resolve(CONFIG)));
        try {
            folder.openWeights();
            return folder;
        } catch (IOException | RuntimeException failure) {
            folder.close();
            throw failure;
        }
    }

    /**
     * Checks what people give instead of a model folder: a name that nothing is downloaded for, a file, a folder that they may not
     * read, an adapter.
     *
     * @throws IOException saying which it is
     */
    public static void requireFolder(Path directory) throws IOException {
        if (!Files.exists(directory)) {
            throw new IOException(directory + ": expected a model folder, found none; models are not downloaded");
        }
        if (!Files.isDirectory(directory)) {
            throw new IOException(directory + ": expected a model folder, found a file");
        }
        if (!Files.isReadable(directory) || !Files.isExecutable(directory)) {
            throw new IOException(directory + ": expected a model folder, found no permission to read it");
        }
        if (AdapterFiles.isAdapter(directory) && !Files.exists(directory.resolve(CONFIG))) {
            throw new IOException(directory + ": expected a model folder, found an adapter's");
        }
    }

    /** Names of a model's files that are in {@code directory}: its configuration, weights or their indexes. */
    static List<String> filesIn(Path directory) {
        return Stream.concat(Stream.of(CONFIG), WEIGHTS.stream().flatMap(name -> Stream.of(name, name + INDEX)))
                .filter(name -> Files.exists(directory.resolve(name))).toList();
    }

    private void openWeights() throws IOException {
        for (String name : WEIGHTS) {
            Path index = directory.resolve(name + INDEX);
            if (Files.exists(directory.resolve(name))) {
                WeightsFile file = openFile(name);
                file.entries().keySet().forEach(tensor -> fileOf.put(tensor, file));
                return;
            }
            if (Files.exists(index)) {
                openShards(index);
                return;
            }
        }
        throw new IOException(
                directory + ": expected one of " + WEIGHTS + ", or one of them with " + INDEX + ", found none");
    }

    private void openShards(Path index) throws IOException {
        for (Map.Entry<String, JsonNode> entry : readJson(index).path("weight_map").properties()) {
            String shard = entry.getValue().stringValue("");
            if (shard.isEmpty() || shard.contains("/") || shard.contains("\0")) {
                throw new IOException(
                        index + ": tensor " + entry.getKey() + ": expected the name of a file beside it, found "
                                + entry.getValue());
            }
            Path path = directory.resolve(shard);
            if (!Files.isRegularFile(path)) {
                throw new IOException(path + ": expected a shard that " + index.getFileName() + " names, found no file");
            }
            WeightsFile file = openFile(shard);
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

    private WeightsFile openFile(String name) throws IOException {
        WeightsFile open = files.get(name);
        if (open == null) {
            Path path = directory.resolve(name);
            open = name.endsWith(".safetensors") ? SafetensorsFile.open(path) : TorchFile.open(path);
            files.put(name, open);
        }
        return open;
    }

    private static JsonNode readJson(Path file) throws IOException {
        TextFiles.requireFile(file);
        try {
            JsonNode json = JSON.readTree(Files.readAllBytes(file));
            if (!json.isObject()) {
                throw new IOException(file + ": expected a JSON object, found " + (json.isMissingNode() ? "nothing" : json));
            }
            return json;
        } catch (JacksonException broken) {
            throw new IOException(file + ": expected JSON: " + TextFiles.problem(broken), broken);
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
        WeightsFile file = fileOf(name);
        Tensor tensor = file.tensor(name);
        if (shape.length > 0 && !tensor.shape().equals(Shape.of(shape))) {
            throw new IOException(
                    file.file() + ": tensor " + name + ": expected shape " + Shape.of(shape) + ", found " + tensor.shape());
        }
        return tensor;
    }

    /** Gives the physical memory behind a tensor back, once its values are elsewhere; see {@link WeightsFile#release}. */
    public void release(String name) throws IOException {
        fileOf(name).release(name);
    }

    /**
     * SHA-256 over the names, types, shapes and bytes of all tensors, in hexadecimal: equal for equal weights, in whichever
     * files they lie. Reads every byte, and keeps none of them in memory.
     */
    public String weightsHash() {
        return hash((bytes, digest) -> {
            for (long from = 0; from < bytes.byteSize(); from += HASHED_AT_ONCE) {
                MemorySegment piece = bytes.asSlice(from, Math.min(HASHED_AT_ONCE, bytes.byteSize() - from));
                digest.update(piece.asByteBuffer());
                piece.unload();
            }
        });
    }

    /**
     * As {@link #weightsHash}, of the first and the last 4096 bytes of each tensor: tells models apart that somebody may take for
     * one another, in the time that it takes to read a few megabytes.
     */
    public String sampledWeightsHash() {
        return hash((bytes, digest) -> {
            long size = bytes.byteSize();
            digest.update(bytes.asSlice(0, Math.min(SAMPLED, size)).asByteBuffer());
            long from = Math.max(SAMPLED, size - SAMPLED);
            if (from < size) {
                digest.update(bytes.asSlice(from).asByteBuffer());
            }
        });
    }

    private String hash(BiConsumer<MemorySegment, MessageDigest> bytesOf) {
        MessageDigest digest = sha256();
        fileOf.forEach((name, file) -> {
            WeightsFile.Entry entry = file.entries().get(name);
            // Lengths stand before what they count, so that no two sets of tensors make the same stream.
            String described = name.length() + " " + name + " " + entry.dtype() + " " + entry.shape() + " ";
            digest.update(described.getBytes(StandardCharsets.UTF_8));
            bytesOf.accept(file.bytes(name), digest);
        });
        return HexFormat.of().formatHex(digest.digest());
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException missing) {
            throw new IllegalStateException("expected SHA-256, which every Java platform has", missing);
        }
    }

    private WeightsFile fileOf(String name) throws IOException {
        WeightsFile file = fileOf.get(name);
        if (file == null) {
            throw new IOException(directory + ": expected a tensor " + name + ", found none of that name");
        }
        return file;
    }

    @Override
    public void close() {
        files.values().forEach(WeightsFile::close);
        files.clear();
        fileOf.clear();
    }

    @Override
    public String toString() {
        return directory + ": " + Counted.of(fileOf.size(), "tensor");
    }
}
