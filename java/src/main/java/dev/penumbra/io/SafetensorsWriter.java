package dev.penumbra.io;

import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Map;
import java.util.TreeMap;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/** Writes safetensors files. */
public final class SafetensorsWriter {

    /** The header's key that is no tensor. */
    static final String METADATA = "__metadata__";

    private static final JsonMapper JSON = new JsonMapper();

    /** Bytes handed to the channel at a time: a ByteBuffer ends at 2 GiB. */
    private static final long PIECE = 1L << 28;

    private SafetensorsWriter() {
    }

    /**
     * Writes contiguous host tensors, in the order of their names, beside {@code file} and then moves them into place.
     * {@code metadata} may be empty.
     */
    public static void write(Path file, Map<String, Tensor> tensors, Map<String, String> metadata) throws IOException {
        Map<String, Tensor> ordered = new TreeMap<>(tensors);
        byte[] header = header(ordered, metadata);
        AtomicFiles.write(file, path -> {
            try (FileChannel channel = FileChannel.open(path, StandardOpenOption.WRITE)) {
                ByteBuffer length = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(0, header.length);
                writeFully(channel, length);
                writeFully(channel, ByteBuffer.wrap(header));
                for (Tensor tensor : ordered.values()) {
                    MemorySegment bytes = tensor.segment();
                    for (long from = 0; from < bytes.byteSize(); from += PIECE) {
                        writeFully(channel, bytes.asSlice(from, Math.min(PIECE, bytes.byteSize() - from)).asByteBuffer());
                    }
                }
            }
        });
    }

    private static byte[] header(Map<String, Tensor> tensors, Map<String, String> metadata) {
        ObjectNode root = JSON.createObjectNode();
        if (!metadata.isEmpty()) {
            ObjectNode node = root.putObject(METADATA);
            metadata.forEach(node::put);
        }
        long offset = 0;
        for (Map.Entry<String, Tensor> named : tensors.entrySet()) {
            Tensor tensor = named.getValue();
            if (named.getKey().equals(METADATA)) {
                throw new IllegalArgumentException(
                        "expected a tensor's name, found " + METADATA + ", which is the format's own");
            }
            ObjectNode node = root.putObject(named.getKey());
            node.put("dtype", tensor.dtype().name());
            var shape = node.putArray("shape");
            for (long dim : tensor.shape().dims()) {
                shape.add(dim);
            }
            node.putArray("data_offsets").add(offset).add(offset + tensor.byteSize());
            offset += tensor.byteSize();
        }
        String text = JSON.writeValueAsString(root);
        // Readers map the tensors: the header is padded so that they start at a multiple of 8.
        int padding = (8 - text.getBytes(StandardCharsets.UTF_8).length % 8) % 8;
        return (text + " ".repeat(padding)).getBytes(StandardCharsets.UTF_8);
    }

    private static void writeFully(FileChannel channel, ByteBuffer buffer) throws IOException {
        while (buffer.hasRemaining()) {
            channel.write(buffer);
        }
    }
}
