package dev.penumbra.internal.ffi;

import dev.penumbra.backend.Graph;
import dev.penumbra.backend.HostStore;
import dev.penumbra.backend.Readback;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.OptionalLong;

/** A device's memory and the stream its operations are enqueued on; the contracts are those of {@code Backend}. */
interface DeviceMemory extends AutoCloseable {

    /** What the C ABI's params take as {@code stream}. */
    MemorySegment stream();

    Tensor allocate(Arena owner, DType dtype, Shape shape);

    /** The tensors agree in dtype and shape, and are contiguous; of a download too. */
    void upload(Tensor source, Tensor target);

    void download(Tensor source, Tensor target);

    Readback read(Tensor source);

    HostStore hostStore(Arena owner, long bytes);

    boolean isAsynchronous();

    Graph capture(Arena owner, Runnable operations);

    double milliseconds(Runnable operations);

    OptionalLong freeBytes();

    void synchronize();

    /** Waits, then frees all that is still allocated. */
    @Override
    void close();
}
