package dev.penumbra.backend;

import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.List;

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

    /** Copies {@code source} (host) to {@code target} (this device); same dtype and shape, both contiguous. */
    void upload(Tensor source, Tensor target);

    /** Waits for everything enqueued, then copies {@code source} (this device) to {@code target} (host). */
    void download(Tensor source, Tensor target);

    /** Bytes on this device that {@link #pack} will take for a weight of this form. */
    long packedBytes(FrozenWeight.Form form);

    /**
     * Packs a frozen weight W [out, in], made of {@code parts} (host tensors [out_i, in], f32, bf16 or f16) stacked along
     * out. The parts are no longer needed when this returns. The weight lives as long as {@code owner}.
     */
    FrozenWeight pack(Arena owner, FrozenWeight.Form form, List<Tensor> parts);

    /** Enqueues one operation. */
    void run(Operation operation);

    /** Bytes of workspace that {@code operation} needs; its own workspace and the contents of its tensors are not read. */
    long workspaceBytes(Operation operation);

    /** Flat index of the first element of a contiguous host tensor that is not finite, or -1. */
    long findNotFinite(Tensor host);

    /** Bytes the native side holds beside all memory it was given. */
    long internalBytes();

    /** Waits for everything enqueued; a failure of an earlier operation shows here at the latest. */
    void synchronize();

    /** Waits, then frees the device. Tensors and weights must not be used after. */
    @Override
    void close();
}
