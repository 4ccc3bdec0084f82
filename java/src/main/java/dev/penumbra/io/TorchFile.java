package dev.penumbra.io;

import dev.penumbra.io.Unpickler.Storage;
import dev.penumbra.io.Unpickler.TensorView;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Function;

/**
 * A dictionary of tensors that {@code torch.save} wrote ({@code pytorch_model.bin}): a zip with the pickled dictionary in
 * {@code NAME/data.pkl} and each storage, uncompressed, in {@code NAME/data/KEY}. No code of the pickle is run; anything in
 * it but tensors is refused.
 */
public final class TorchFile extends WeightsFile {

    private static final String PICKLE = "/data.pkl";

    /** Enough for a million tensors; only a file that is not a checkpoint has more. */
    private static final long LARGEST_PICKLE = 100_000_000;

    private TorchFile(Path file, Arena arena, MemorySegment data, Map<String, Entry> entries) {
        super(file, arena, data, entries);
    }

    /**
     * Maps {@code file} and reads its dictionary.
     *
     * @throws TorchFileException when the file is not a zip of plain tensors
     * @throws IOException when it cannot be read
     */
    public static TorchFile open(Path file) throws IOException {
        TextFiles.requireFile(file);
        Arena arena = Arena.ofShared();
        try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
            MemorySegment all = channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size(), arena);
            return new TorchFile(file, arena, all, read(file, all));
        } catch (IOException | RuntimeException failure) {
            arena.close();
            throw failure;
        }
    }

    private static Map<String, Entry> read(Path file, MemorySegment all) {
        Function<String, TorchFileException> failure = message -> new TorchFileException(file, message);
        if (all.byteSize() < 4 || all.get(ValueLayout.JAVA_BYTE, 0) != 'P' || all.get(ValueLayout.JAVA_BYTE, 1) != 'K') {
            throw failure.apply("expected a zip, as torch.save writes since PyTorch 1.6, found another format: load the file"
                    + " in Python and save it again, best as safetensors");
        }
        ZipEntries zip = new ZipEntries(all, failure);
        String root = root(zip, failure);
        if (zip.has(root + "/byteorder")) {
            String order = new String(zip.bytes(root + "/byteorder").toArray(ValueLayout.JAVA_BYTE), StandardCharsets.UTF_8);
            if (!order.equals("little")) {
                throw failure.apply("expected little-endian tensors, found byteorder " + order);
            }
        }
        MemorySegment pickle = zip.bytes(root + PICKLE);
        if (pickle.byteSize() > LARGEST_PICKLE) {
            throw failure.apply("expected " + root + PICKLE + " of at most " + LARGEST_PICKLE + " bytes, found "
                    + pickle.byteSize());
        }
        Map<String, Entry> entries = new TreeMap<>();
        Unpickler.read(pickle.toArray(ValueLayout.JAVA_BYTE), failure).forEach((name, view) -> {
            Storage storage = view.storage();
            MemorySegment bytes = zip.bytes(root + "/data/" + storage.key());
            long elementBytes = BYTE_SIZES.get(storage.dtype());
            if (bytes.byteSize() % elementBytes != 0 || bytes.byteSize() / elementBytes != storage.elements()) {
                throw failure
                        .apply("tensor " + name + ": expected a storage of " + storage.elements() + " " + storage.dtype()
                                + ", found " + bytes.byteSize() + " bytes in data/" + storage.key());
            }
            long count = contiguousCount(name, view, failure);
            if (view.offset() < 0 || view.offset() > storage.elements() || count > storage.elements() - view.offset()) {
                throw failure.apply("tensor " + name + ": expected " + count + " elements at " + view.offset()
                        + " of its storage, found a storage of " + storage.elements());
            }
            long begin = bytes.address() - all.address() + view.offset() * elementBytes;
            entries.put(name, new Entry(storage.dtype(), view.shape(), begin, begin + count * elementBytes));
        });
        return entries;
    }

    /** The folder that everything in the zip lies in; torch.save takes it from the file's name. */
    private static String root(ZipEntries zip, Function<String, TorchFileException> failure) {
        for (String name : zip.names()) {
            if (name.endsWith(PICKLE) && name.indexOf('/') == name.length() - PICKLE.length()) {
                return name.substring(0, name.length() - PICKLE.length());
            }
        }
        throw failure.apply("expected an entry NAME" + PICKLE + " in the zip, found none");
    }

    /** The number of a tensor's elements, which must lie one after another in row-major order. */
    private static long contiguousCount(String name, TensorView view, Function<String, TorchFileException> failure) {
        List<Long> shape = view.shape();
        long count = 1;
        try {
            for (long size : shape) {
                if (size < 0) {
                    throw failure.apply("tensor " + name + ": expected sizes of 0 or more, found " + shape);
                }
                count = Math.multiplyExact(count, size);
            }
            Math.multiplyExact(count, BYTE_SIZES.get(view.storage().dtype()));
        } catch (ArithmeticException overflow) {
            throw failure.apply("tensor " + name + ": expected a shape that fits in memory, found " + shape);
        }
        boolean contiguous = view.strides().size() == shape.size();
        long stride = 1;
        for (int i = shape.size() - 1; i >= 0 && contiguous && count > 0; i--) {
            contiguous = shape.get(i) == 1 || view.strides().get(i) == stride;
            stride *= shape.get(i);
        }
        if (!contiguous) {
            throw failure.apply("tensor " + name + ": expected contiguous elements of shape " + shape + ", found strides "
                    + view.strides() + ": call contiguous() before saving");
        }
        return count;
    }

    @Override
    TorchFileException failure(String message) {
        return new TorchFileException(file(), message);
    }
}
