package dev.penumbra.io;

import dev.penumbra.internal.Counted;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
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

/** A safetensors file: eight bytes with the length of a JSON header, the header, and the tensors' bytes without gaps. */
public final class SafetensorsFile extends WeightsFile {

    /** The format's own limit. */
    private static final long LARGEST_HEADER = 100_000_000;

    private static final JsonMapper JSON = JsonMapper.builder()
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    private final Map<String, String> metadata;

    private SafetensorsFile(Path file, Arena arena, MemorySegment data, Map<String, Entry> entries,
            Map<String, String> metadata) {
        super(file, arena, data, entries);
        this.metadata = Collections.unmodifiableMap(metadata);
    }

    /**
     * Maps {@code file} and checks its header.
     *
     * @throws SafetensorsException when the file is not what the format says
     * @throws IOException when it cannot be read
     */
    public static SafetensorsFile open(Path file) throws IOException {
        TextFiles.requireFile(file);
        Arena arena = Arena.ofShared();
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
            long size = channel.size();
            if (size < 8) {
                throw new SafetensorsException(file,
                        "expected 8 bytes of header length, found a file of " + Counted.of(size, "byte"));
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
            // Strictly: two names that differ in broken bytes only would become one.
            root = JSON.readTree(StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(header)).toString());
        } catch (CharacterCodingException broken) {
            throw new SafetensorsException(file, "expected a header in UTF-8, found other bytes");
        } catch (JacksonException broken) {
            throw new SafetensorsException(file, "expected a header in JSON: " + TextFiles.problem(broken));
        }
        if (root == null || !root.isObject()) {
            throw new SafetensorsException(file, "expected a header that is a JSON object");
        }
        Map<String, Entry> entries = new TreeMap<>();
        for (Map.Entry<String, JsonNode> property : root.properties()) {
            if (property.getKey().equals(SafetensorsWriter.METADATA)) {
                if (!property.getValue().isObject()) {
                    throw new SafetensorsException(file,
                            "expected __metadata__ to be an object of strings, found " + property.getValue());
                }
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
        List<Long> dims = new ArrayList<>();
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

    @Override
    SafetensorsException failure(String message) {
        return new SafetensorsException(file(), message);
    }

    /** What the header says under {@code __metadata__}. */
    public Map<String, String> metadata() {
        return metadata;
    }
}
