package dev.penumbra.internal.ffi;

import dev.penumbra.backend.Readback;
import dev.penumbra.internal.ffi.cuda.Cuda;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Page-locked host memory between the JVM's and the device's: a copy from other memory makes the host wait for the stream.
 *
 * <p>Uploads go through two halves, taken in turn; a half is written again once the stream has passed the last copy out of
 * it. Reads go through slots, taken in turn.
 */
final class PinnedBuffers implements AutoCloseable {

    /** A step uploads a batch's tokens, positions and targets: some 100 KB. Weights go through in pieces of this size. */
    private static final long HALF_BYTES = 4L << 20;

    private static final int ALIGNMENT = 64;

    /** A trainer keeps a loss, a norm and its lists' summaries in flight for two steps. */
    private static final int SLOTS = 16;

    /** Three numbers a layer, of more layers than models have. */
    private static final int SLOT_BYTES = 4096;

    private final MemorySegment stream;
    private final MemorySegment uploads;
    private final MemorySegment reads;
    private final MemorySegment[] halfPassed = new MemorySegment[2];
    private final MemorySegment[] slotArrived = new MemorySegment[SLOTS];
    private int half;
    private long used;
    private long readsSoFar;

    PinnedBuffers(Arena owner, MemorySegment stream) {
        this.stream = stream;
        uploads = pinned(owner, 2 * HALF_BYTES);
        reads = pinned(owner, (long) SLOTS * SLOT_BYTES);
        for (int i = 0; i < halfPassed.length; i++) {
            halfPassed[i] = event();
        }
        for (int i = 0; i < slotArrived.length; i++) {
            slotArrived[i] = event();
        }
    }

    private static MemorySegment pinned(Arena owner, long bytes) {
        return pinned(bytes).reinterpret(bytes, owner, null);
    }

    /** Its address, to be freed by {@code cuMemFreeHost}. */
    static MemorySegment pinned(long bytes) {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment result = call.allocate(Cuda.C_POINTER);
            CudaStatus.check(Cuda.cuMemHostAlloc(result, bytes, 0), bytes + " bytes of page-locked memory");
            return result.get(Cuda.C_POINTER, 0);
        }
    }

    /** To be destroyed by {@code cuEventDestroy}. */
    static MemorySegment event() {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment result = call.allocate(Cuda.C_POINTER);
            CudaStatus.check(Cuda.cuEventCreate(result, Cuda.CU_EVENT_DISABLE_TIMING()), "an event");
            return result.get(Cuda.C_POINTER, 0);
        }
    }

    /** Enqueues the copy; {@code source} may change once this returns. */
    void upload(MemorySegment source, long target) {
        long done = 0;
        while (done < source.byteSize()) {
            if (used == HALF_BYTES) {
                turn();
            }
            long piece = Math.min(source.byteSize() - done, HALF_BYTES - used);
            MemorySegment staged = uploads.asSlice(half * HALF_BYTES + used, piece).copyFrom(source.asSlice(done, piece));
            CudaStatus.check(Cuda.cuMemcpyHtoDAsync_v2(target + done, staged, piece, stream), "an upload");
            done += piece;
            used = Math.min(HALF_BYTES, Math.ceilDiv(used + piece, ALIGNMENT) * ALIGNMENT);
        }
    }

    /** Takes the other half, once the copies out of it are done. */
    private void turn() {
        CudaStatus.check(Cuda.cuEventRecord(halfPassed[half], stream), "an event");
        half = 1 - half;
        CudaStatus.check(Cuda.cuEventSynchronize(halfPassed[half]), "the uploads before");
        used = 0;
    }

    Readback read(Tensor source) {
        if (source.dtype() != DType.F32 || !source.isContiguous() || source.byteSize() > SLOT_BYTES) {
            throw new IllegalArgumentException(
                    "expected at most " + SLOT_BYTES / 4 + " contiguous f32 values to read, found " + source);
        }
        long number = readsSoFar++;
        int slot = (int) (number % SLOTS);
        MemorySegment staged = reads.asSlice((long) slot * SLOT_BYTES, source.byteSize());
        MemorySegment arrived = slotArrived[slot];
        CudaStatus.check(Cuda.cuMemcpyDtoHAsync_v2(staged, source.address(), source.byteSize(), stream), "a read");
        CudaStatus.check(Cuda.cuEventRecord(arrived, stream), "an event");
        return new Arriving(number, staged, arrived);
    }

    /** Good until its slot is taken again, {@link #SLOTS} reads later. */
    private final class Arriving implements Readback {

        private final long number;
        private final MemorySegment staged;
        private final MemorySegment arrived;

        Arriving(long number, MemorySegment staged, MemorySegment arrived) {
            this.number = number;
            this.staged = staged;
            this.arrived = arrived;
        }

        @Override
        public boolean isDone() {
            int status = Cuda.cuEventQuery(arrived);
            if (status == Cuda.CUDA_ERROR_NOT_READY()) {
                return false;
            }
            CudaStatus.check(status, "the operations enqueued before a read");
            return true;
        }

        @Override
        public float[] floats() {
            long since = readsSoFar - number - 1;
            if (since >= SLOTS) {
                throw new IllegalStateException("expected a read's values to be taken before " + SLOTS
                        + " more reads, found " + since + " since");
            }
            CudaStatus.check(Cuda.cuEventSynchronize(arrived), "the operations enqueued before a read");
            return staged.toArray(ValueLayout.JAVA_FLOAT);
        }
    }

    @Override
    public void close() {
        for (MemorySegment event : halfPassed) {
            Cuda.cuEventDestroy_v2(event);
        }
        for (MemorySegment event : slotArrived) {
            Cuda.cuEventDestroy_v2(event);
        }
        Cuda.cuMemFreeHost(uploads);
        Cuda.cuMemFreeHost(reads);
    }
}
