package dev.penumbra.internal.ffi;

import dev.penumbra.internal.ffi.cuda.Cuda;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.List;

/** Copies on a stream of their own; in a capture they become branches of the graph. */
final class CudaHostStore extends HostStorage implements AutoCloseable {

    private final MemorySegment operations;
    private final MemorySegment copies;
    private final MemorySegment begin = PinnedBuffers.event();
    private final MemorySegment done = PinnedBuffers.event();

    /**
     * @param memory page-locked
     * @param operations the stream whose operations write and read the tensors
     * @param copies the stream that copies
     */
    CudaHostStore(MemorySegment memory, MemorySegment operations, MemorySegment copies) {
        super(memory);
        this.operations = operations;
        this.copies = copies;
    }

    @Override
    public void store(List<Tensor> tensors) {
        behindOperations(() -> super.store(tensors));
    }

    @Override
    public void restore(List<Tensor> tensors) {
        behindOperations(() -> super.restore(tensors));
    }

    private void behindOperations(Runnable copying) {
        CudaStatus.check(Cuda.cuEventRecord(begin, operations), "an event");
        CudaStatus.check(Cuda.cuStreamWaitEvent(copies, begin, 0), "a wait for operations");
        copying.run();
        CudaStatus.check(Cuda.cuEventRecord(done, copies), "an event");
    }

    @Override
    void copyOut(Tensor from, MemorySegment to) {
        CudaStatus.check(Cuda.cuMemcpyDtoHAsync_v2(to, from.address(), from.byteSize(), copies), "a copy to the host");
    }

    @Override
    void copyBack(MemorySegment from, Tensor to) {
        CudaStatus.check(Cuda.cuMemcpyHtoDAsync_v2(to.address(), from, to.byteSize(), copies), "a copy from the host");
    }

    @Override
    public void await() {
        CudaStatus.check(Cuda.cuStreamWaitEvent(operations, done, 0), "a wait for copies");
    }

    /** Its memory is its owner's. */
    @Override
    public void close() {
        Cuda.cuEventDestroy_v2(begin);
        Cuda.cuEventDestroy_v2(done);
    }
}
