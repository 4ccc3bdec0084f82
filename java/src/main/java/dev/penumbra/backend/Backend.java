package dev.penumbra.backend;

import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.List;
import java.util.OptionalLong;

/**
 * One device: its memory, and the operations that run there.
 *
 * <p>Operations are enqueued in the order of the calls and see each other's results; {@link #download} and
 * {@link #synchronize} wait for them. A backend is used by one thread at a time.
 */
public interface Backend extends AutoCloseable {

    Device device();

    /** One line on what computes: processor or GPU, instruction set, threads, library versions. */
    String describe();

    /** Allocates a zeroed, contiguous tensor on this device, aligned to 256 bytes, that lives as long as {@code owner}. */
    Tensor allocate(Arena owner, DType dtype, Shape shape);

    /**
     * Copies {@code source} (host) to {@code target} (this device), in order with the operations; same dtype and shape, both
     * contiguous. The source may change once this returns.
     */
    void upload(Tensor source, Tensor target);

    /** Waits for everything enqueued, then copies {@code source} (this device) to {@code target} (host). */
    void download(Tensor source, Tensor target);

    /** The elements of a contiguous float tensor of this device, in row-major order; waits as {@link #download} does. */
    default float[] toFloats(Tensor source) {
        try (Arena arena = Arena.ofConfined()) {
            Tensor host = Tensor.allocate(arena, source.dtype(), source.shape());
            download(source, host);
            return host.toFloats();
        }
    }

    /** The elements of a contiguous I32 tensor, as {@link #toFloats}. */
    default int[] toInts(Tensor source) {
        try (Arena arena = Arena.ofConfined()) {
            Tensor host = Tensor.allocate(arena, source.dtype(), source.shape());
            download(source, host);
            return host.toInts();
        }
    }

    /**
     * Enqueues a copy of some f32 values (contiguous, at most 1024) to the host, without waiting for it. Take them before 16 more
     * reads.
     */
    Readback read(Tensor source);

    /**
     * Room on the host for so many bytes of this device's tensors, as long as {@code owner} lives.
     *
     * @throws BackendException with OUT_OF_MEMORY when the host has less
     */
    HostStore hostStore(Arena owner, long bytes);

    /** Bytes on this device that {@link #pack} will take for a weight of this form. */
    long packedBytes(FrozenWeight.Form form);

    /**
     * A weight of this form that nothing is packed for and no memory is behind: {@link #workspaceBytes} takes its operations,
     * {@link #run} refuses them.
     */
    FrozenWeight planned(Arena owner, FrozenWeight.Form form);

    /**
     * Packs a frozen weight W [out, in], made of {@code parts} (host tensors [out_i, in], f32, bf16 or f16) stacked along
     * out. The parts are no longer needed when this returns. The weight lives as long as {@code owner}.
     */
    FrozenWeight pack(Arena owner, FrozenWeight.Form form, List<Tensor> parts);

    /**
     * The dtype of a model's residual stream, which products in {@code computed} add to and norms read: f32 where rounding it
     * saves no time worth its error, as on the CPU.
     */
    default DType residualDType(DType computed) {
        return computed;
    }

    /** Enqueues one operation. */
    void run(Operation operation);

    /**
     * Whether {@link #run} returns before the operation has run. Where it does, {@link #capture} saves the host's part of
     * every launch.
     */
    boolean isAsynchronous();

    /**
     * Records what {@code operations} enqueues, without running it; uploads, reads and allocations must not be among it. The
     * graph lives as long as {@code owner}. A synchronous backend keeps {@code operations} and runs them at every launch.
     */
    Graph capture(Arena owner, Runnable operations);

    /** Runs {@code operations} and returns the milliseconds that the device spent, by its own clock where it has one. */
    double milliseconds(Runnable operations);

    /** Bytes of workspace that {@code operation} needs; its own workspace and the contents of its tensors are not read. */
    long workspaceBytes(Operation operation);

    /** Flat index of the first element of a contiguous host tensor that is not finite, or -1. */
    long findNotFinite(Tensor host);

    /** Bytes the native side holds beside all memory it was given. */
    long internalBytes();

    /** Bytes that could be allocated now; empty where that is not known. */
    OptionalLong freeBytes();

    /** As {@link #freeBytes}, in the memory of this process's host. */
    OptionalLong hostFreeBytes();

    /** Waits for everything enqueued; a failure of an earlier operation shows here at the latest. */
    void synchronize();

    /** Waits, then frees the device. Tensors and weights must not be used after. */
    @Override
    void close();
}
