package dev.penumbra.io;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import tools.jackson.core.JacksonException;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * A safetensors file, mapped into memory: eight bytes with the length of a JSON header, the header, and the tensors' bytes
 * without gaps. Tensors are views of the mapping; closing the file ends them.
 */
public final class SafetensorsFile implements AutoCloseable {

    /** The format's own limit. */
    private static final long LARGEST_HEADER = 100_000_000;

    private static final Map<String, Integer> BYTE_SIZES = Map.ofEntries(
            Map.entry("F64", 8),
            Map.entry("F32", 4),
            Map.entry("F16", 2),
            Map.entry("BF16", 2),
            Map.entry("I64", 8),
            Map.entry("I32", 4),
            Map.entry("I16", 2),
            Map.entry("I8", 1),
            Map.entry("U64", 8),
            Map.entry("U32", 4),
            Map.entry("U16", 2),
            Map.entry("U8", 1),
            Map.entry("BOOL", 1));

    private static final JsonMapper JSON = JsonMapper.builder()
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    /**
     * One tensor of the header.
     *
     * @param dtype the format's name, for example BF16
     * @param begin first byte, counted from the end of the header
     * @param end the byte after the last
     */
    public record Entry(String dtype, List<Long> shape, long begin, long end) {
    }

    private final Path file;
    private final Arena arena;
    private final MemorySegment data;
    private final Map<String, Entry> entries;
    private final Map<String, String> metadata;

    private SafetensorsFile(Path file, Arena arena, MemorySegment data, Map<String, Entry> entries,
            Map<String, String> metadata) {
        this.file = file;
        this.arena = arena;
        this.data = data;
        this.entries = entries;
        this.metadata = metadata;
    }

    /**
     * Maps {@code file} and checks its header.
     *
     * @throws SafetensorsException when the file is not what the format says
     * @throws IOException when it cannot be read
     */
    public static SafetensorsFile open(Path file) throws IOException {
        Arena arena = Arena.ofShared();
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
            long size = channel.size();
            if (size < 8) {
                throw new SafetensorsException(file,
                        "expected 8 bytes of header length, found a file of " + size + " bytes");
            }
            MemorySegment all = channel.map(FileChannel.MapMode.READ_ONLY, 0, size, arena);
            long headerBytes = all.get(ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN), 0);
            if (headerBytes < 2 || headerBytes > LARGEST_HEADER || headerBytes > size - 8) {
                throw new SafetensorsException(
                        file,
                        "expected a header of 2 to " + Math.min(LARGEST_HEADER, size - 8) + " bytes, found a length of "
                                + Long.toUnsignedString(headerBytes));
            }
            byte[] header = all.asSlice(8, headerBytes).toArray(ValueLayout.JAVA_BYTE);
            Map<String, String> metadata = new LinkedHashMap<>();
            Map<String, Entry> entries = parse(file, header, metadata);
            checkLayout(file, entries, size - 8 - headerBytes);
            return new SafetensorsFile(file, arena, all.asSlice(8 + headerBytes), entries, metadata);
        } catch (IOException | RuntimeException failure) {
            arena.close();
            throw failure;
        }
    }

    private static Map<String, Entry> parse(Path file, byte[] header, Map<String, String> metadata) {
        JsonNode root;
        try {
            root = JSON.readTree(new String(header, StandardCharsets.UTF_8));
        } catch (JacksonException broken) {
            throw new SafetensorsException(file, "expected a header in JSON: " + broken.getOriginalMessage());
        }
        if (root == null || !root.isObject()) {
            throw new SafetensorsException(file, "expected a header that is a JSON object");
        }
        Map<String, Entry> entries = new TreeMap<>();
        for (Map.Entry<String, JsonNode> property : root.properties()) {
            if (property.getKey().equals("__metadata__")) {
                for (Map.Entry<String, JsonNode> text : property.getValue().properties()) {
                    if (!text.getValue().isString()) {
                        throw new SafetensorsException(file,
                                "expected metadata of strings, found " + text.getKey() + ": " + text.getValue());
                    }
                    metadata.put(text.getKey(), text.getValue().stringValue());
                }
            } else {
                entries.put(property.getKey(), parseEntry(file, property.getKey(), property.getValue()));
            }
        }
        return entries;
    }

    private static Entry parseEntry(Path file, String name, JsonNode node) {
        JsonNode dtype = node.path("dtype");
        JsonNode shape = node.path("shape");
        JsonNode offsets = node.path("data_offsets");
        if (!dtype.isString() || !shape.isArray() || !offsets.isArray() || offsets.size() != 2) {
            throw new SafetensorsException(file,
                    "tensor " + name + ": expected dtype, shape and two data_offsets, found " + node);
        }
        Integer elementBytes = BYTE_SIZES.get(dtype.stringValue());
        if (elementBytes == null) {
            throw new SafetensorsException(
                    file, "tensor " + name + ": expected a dtype among " + BYTE_SIZES.keySet().stream().sorted().toList()
                            + ", found " + dtype);
        }
        long bytes = elementBytes;
        List<Long> dims = new java.util.ArrayList<>();
        try {
            for (JsonNode dim : shape) {
                long size = wholeNumber(file, name, "shape", dim);
                dims.add(size);
                bytes = Math.multiplyExact(bytes, size);
            }
        } catch (ArithmeticException overflow) {
            throw new SafetensorsException(file,
                    "tensor " + name + ": expected a shape that fits in memory, found " + shape);
        }
        long begin = wholeNumber(file, name, "data_offsets", offsets.get(0));
        long end = wholeNumber(file, name, "data_offsets", offsets.get(1));
        if (end < begin || end - begin != bytes) {
            throw new SafetensorsException(
                    file,
                    "tensor " + name + ": expected " + bytes + " bytes for " + dtype.stringValue() + " " + dims
                            + ", found data_offsets ["
                            + begin + ", " + end + "]");
        }
        return new Entry(dtype.stringValue(), List.copyOf(dims), begin, end);
    }

    private static long wholeNumber(Path file, String name, String key, JsonNode node) {
        if (!node.isIntegralNumber() || !node.canConvertToLong() || node.longValue() < 0) {
            throw new SafetensorsException(file,
                    "tensor " + name + ": expected whole numbers of 0 or more in " + key + ", found " + node);
        }
        return node.longValue();
    }

    /** The tensors' bytes follow one another without gap or overlap, to the file's end. */
    private static void checkLayout(Path file, Map<String, Entry> entries, long available) {
        long next = 0;
        List<Map.Entry<String, Entry>> ordered = entries.entrySet().stream()
                .sorted(Comparator.<Map.Entry<String, Entry>>comparingLong(e -> e.getValue().begin())
                        .thenComparingLong(e -> e.getValue().end()))
                .toList();
        for (Map.Entry<String, Entry> named : ordered) {
            Entry entry = named.getValue();
            if (entry.begin() != next) {
                throw new SafetensorsException(
                        file,
                        "tensor " + named.getKey() + ": expected its bytes to begin at " + next + ", found " + entry.begin()
                                + (entry.begin() < next ? ": it overlaps another" : ": there is a gap before it"));
            }
            next = entry.end();
        }
        if (next != available) {
            throw new SafetensorsException(
                    file,
                    "expected " + next + " bytes of tensors, found " + available
                            + (available < next ? ": the file is truncated" : ": there are bytes that no tensor owns"));
        }
    }

    public Path file() {
        return file;
    }

    /** The tensors by name, in the order of their names. */
    public Map<String, Entry> entries() {
        return Collections.unmodifiableMap(entries);
    }

    public Map<String, String> metadata() {
        return Collections.unmodifiableMap(metadata);
    }

    /** View of a tensor in F32, BF16, F16, I32, U8 or U64, of rank 1 to 4 (a scalar is [1]). */
    public Tensor tensor(String name) {
        Entry entry = entries.get(name);
        if (entry == null) {
            throw new SafetensorsException(file, "expected a tensor " + name + ", found none of that name");
        }
        DType dtype = switch (entry.dtype()) {
            case "F32" -> DType.F32;
            case "BF16" -> DType.BF16;
            case "F16" -> DType.F16;
            case "I32" -> DType.I32;
            case "U8" -> DType.U8;
            case "U64" -> DType.U64;
            default -> throw new SafetensorsException(
                    file, "tensor " + name + ": expected F32, BF16, F16, I32, U8 or U64, found " + entry.dtype());
        };
        if (entry.shape().size() > Shape.MAX_RANK) {
            throw new SafetensorsException(file,
                    "tensor " + name + ": expected at most 4 dimensions, found " + entry.shape());
        }
        long[] dims = entry.shape().isEmpty() ? new long[]{1} : entry.shape().stream().mapToLong(Long::longValue).toArray();
        return Tensor.view(data.asSlice(entry.begin(), entry.end() - entry.begin()), dtype, Shape.of(dims));
    }

    /** Unmaps the file; its tensors throw from then on. */
    @Override
    public void close() {
        arena.close();
    }
}
