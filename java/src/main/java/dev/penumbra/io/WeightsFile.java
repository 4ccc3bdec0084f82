package dev.penumbra.io;

import dev.penumbra.internal.Counted;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** A file of named tensors, mapped into memory. Tensors are views of the mapping; closing the file ends them. */
public abstract sealed class WeightsFile implements AutoCloseable permits SafetensorsFile, TorchFile {

    /** Bytes of one element, by the name that safetensors has for a type. */
    static final Map<String, Integer> BYTE_SIZES = Map.ofEntries(
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

    /**
     * Where a tensor lies.
     *
     * @param dtype safetensors' name, for example BF16
     * @param begin first byte, counted from the start of the file's tensor data
     * @param end the byte after the last
     */
    public record Entry(String dtype, List<Long> shape, long begin, long end) {
    }

    private final Path file;
    private final Arena arena;
    private final MemorySegment data;
    private final Map<String, Entry> entries;

    WeightsFile(Path file, Arena arena, MemorySegment data, Map<String, Entry> entries) {
        this.file = file;
        this.arena = arena;
        this.data = data;
        this.entries = Collections.unmodifiableMap(new TreeMap<>(entries));
    }

    /** The exception of this file's format. */
    abstract WeightsFileException failure(String message);

    public final Path file() {
        return file;
    }

    /** The tensors by name, in the order of their names. */
    public final Map<String, Entry> entries() {
        return entries;
    }

    /** View of a tensor in F32, BF16, F16, I32, U8 or U64, of rank 1 to 4 (a scalar is [1]). */
    public final Tensor tensor(String name) {
        Entry entry = entry(name);
        DType dtype = switch (entry.dtype()) {
            case "F32" -> DType.F32;
            case "BF16" -> DType.BF16;
            case "F16" -> DType.F16;
            case "I32" -> DType.I32;
            case "U8" -> DType.U8;
            case "U64" -> DType.U64;
            default ->
                throw failure("tensor " + name + ": expected F32, BF16, F16, I32, U8 or U64, found " + entry.dtype());
        };
        if (entry.shape().size() > Shape.MAX_RANK) {
            throw failure("tensor " + name + ": expected at most 4 dimensions, found " + entry.shape());
        }
        long[] dims = entry.shape().isEmpty() ? new long[]{1} : entry.shape().stream().mapToLong(Long::longValue).toArray();
        return Tensor.view(bytes(name), dtype, Shape.of(dims));
    }

    /** The mapped bytes of a tensor of any type, exactly. */
    public final MemorySegment bytes(String name) {
        Entry entry = entry(name);
        return data.asSlice(entry.begin(), entry.end() - entry.begin());
    }

    /**
     * Gives the physical memory behind a tensor back to the system, with the pages that it shares with its neighbours. The
     * tensor stays valid: whoever reads it again has it mapped again from the file.
     */
    public final void release(String name) {
        bytes(name).unload();
    }

    private Entry entry(String name) {
        Entry entry = entries.get(name);
        if (entry == null) {
            throw failure("expected a tensor " + name + ", found none of that name");
        }
        return entry;
    }

    /** Unmaps the file; its tensors throw from then on. A second time does nothing. */
    @Override
    public final void close() {
        if (arena.scope().isAlive()) {
            arena.close();
        }
    }

    @Override
    public String toString() {
        return file + ": " + Counted.of(entries.size(), "tensor");
    }
}
