package dev.penumbra.internal.ffi;

import dev.penumbra.backend.BackendException;
import dev.penumbra.backend.BackendException.Status;
import dev.penumbra.backend.Graph;
import dev.penumbra.backend.HostStore;
import dev.penumbra.backend.Readback;
import dev.penumbra.internal.ffi.cuda.Cuda;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.OptionalLong;
import java.util.Set;

/**
 * Memory and one stream of a CUDA device, through the driver, in the device's primary context: the one that the native
 * library's runtime uses too.
 *
 * <p>What an arena owns is freed when the arena closes, after the stream has finished; what is left is freed with this.
 */
final class CudaMemory implements DeviceMemory {

    private final int device;
    private final MemorySegment context;
    private final Arena arena = Arena.ofShared();
    private final MemorySegment stream;
    /** Of copies that run beside the operations. */
    private final MemorySegment copies;
    private final PinnedBuffers pinned;
    private final Set<Long> allocated = new HashSet<>();
    private final Map<Long, CudaHostStore> stores = new HashMap<>();
    private boolean closed;

    private CudaMemory(int device, MemorySegment context) {
        this.device = device;
        this.context = context;
        stream = create(result -> Cuda.cuStreamCreate(result, Cuda.CU_STREAM_NON_BLOCKING()), "a stream");
        copies = create(result -> Cuda.cuStreamCreate(result, Cuda.CU_STREAM_NON_BLOCKING()), "a stream");
        pinned = new PinnedBuffers(arena, stream);
    }

    /** @throws BackendException with UNAVAILABLE and the reason when there is no driver, or none that starts */
    static void requireDriver() {
        int started = initialize();
        if (started != Cuda.CUDA_SUCCESS()) {
            throw new BackendException(Status.UNAVAILABLE, "CUDA cannot start: " + CudaStatus.text(started));
        }
    }

    /**
     * After {@link #requireDriver}.
     *
     * @throws BackendException with UNAVAILABLE when there is no such device
     */
    static CudaMemory open(int ordinal) {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment result = call.allocate(Cuda.C_POINTER);
            if (Cuda.cuDeviceGet(result, ordinal) != Cuda.CUDA_SUCCESS()) {
                throw new BackendException(Status.UNAVAILABLE, "expected a CUDA device " + ordinal + ", found none");
            }
            int device = result.get(Cuda.C_INT, 0);
            CudaStatus.check(Cuda.cuDevicePrimaryCtxRetain(result, device), "the context of CUDA device " + ordinal);
            MemorySegment context = result.get(Cuda.C_POINTER, 0);
            try {
                CudaStatus.check(Cuda.cuCtxSetCurrent(context), "the context of CUDA device " + ordinal);
                return new CudaMemory(device, context);
            } catch (RuntimeException e) {
                Cuda.cuDevicePrimaryCtxRelease_v2(device);
                throw e;
            }
        }
    }

    private static int initialize() {
        try {
            return Cuda.cuInit(0);
        } catch (ExceptionInInitializerError | NoClassDefFoundError | IllegalArgumentException e) {
            // The generated class looks the driver up when it is first used.
            throw new BackendException(Status.UNAVAILABLE,
                    "expected an NVIDIA GPU, found no driver of one: libcuda.so.1 is not installed", e);
        }
    }

    private interface Creation {
        int into(MemorySegment result);
    }

    private static MemorySegment create(Creation creation, String what) {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment result = call.allocate(Cuda.C_POINTER);
            CudaStatus.check(creation.into(result), what);
            return result.get(Cuda.C_POINTER, 0);
        }
    }

    /** The driver's calls act on the calling thread's context. */
    private void select() {
        CudaStatus.check(Cuda.cuCtxSetCurrent(context), "the CUDA context");
    }

    @Override
    public MemorySegment stream() {
        return stream;
    }

    @Override
    public Tensor allocate(Arena owner, DType dtype, Shape shape) {
        long bytes = Math.max(1, shape.size() * dtype.byteSize());
        select();
        long address = allocate(bytes, dtype + shape.toString());
        synchronized (this) {
            allocated.add(address);
        }
        try {
            CudaStatus.check(Cuda.cuMemsetD8Async(address, (byte) 0, bytes, stream), "zeroing " + dtype + shape);
            return Tensor.deviceView(
                    MemorySegment.ofAddress(address).reinterpret(0, owner, freed -> free(freed.address())), dtype, shape);
        } catch (RuntimeException e) {
            free(address);
            throw e;
        }
    }

    private long allocate(long bytes, String what) {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment result = call.allocate(ValueLayout.JAVA_LONG);
            int status = Cuda.cuMemAlloc_v2(result, bytes);
            if (status == Cuda.CUDA_ERROR_OUT_OF_MEMORY()) {
                throw new BackendException(Status.OUT_OF_MEMORY, "expected " + bytes + " bytes of device memory for " + what
                        + ", found " + freeBytes().orElse(0) + " free");
            }
            CudaStatus.check(status, "allocating " + bytes + " bytes for " + what);
            return result.get(ValueLayout.JAVA_LONG, 0);
        }
    }

    /** An owner closes, or this does. A device that failed frees nothing more, and closing must go on. */
    private synchronized void free(long address) {
        if (allocated.remove(address)) {
            Cuda.cuCtxSetCurrent(context);
            Cuda.cuStreamSynchronize(stream);
            Cuda.cuMemFree_v2(address);
        }
    }

    @Override
    public void upload(Tensor source, Tensor target) {
        select();
        pinned.upload(source.segment(), target.address());
    }

    @Override
    public void download(Tensor source, Tensor target) {
        select();
        CudaStatus.check(
                Cuda.cuMemcpyDtoHAsync_v2(target.segment(), source.address(), source.byteSize(), stream), "a download");
        synchronize();
    }

    @Override
    public HostStore hostStore(Arena owner, long bytes) {
        select();
        MemorySegment memory = PinnedBuffers.pinned(bytes).reinterpret(bytes, owner, freed -> freeStore(freed.address()));
        CudaHostStore store = new CudaHostStore(memory, stream, copies);
        synchronized (this) {
            stores.put(memory.address(), store);
        }
        return store;
    }

    /** As {@link #free}. */
    private synchronized void freeStore(long address) {
        CudaHostStore store = stores.remove(address);
        if (store != null) {
            Cuda.cuCtxSetCurrent(context);
            Cuda.cuStreamSynchronize(stream);
            Cuda.cuStreamSynchronize(copies);
            store.close();
            Cuda.cuMemFreeHost(MemorySegment.ofAddress(address));
        }
    }

    @Override
    public Readback read(Tensor source) {
        select();
        return pinned.read(source);
    }

    @Override
    public boolean isAsynchronous() {
        return true;
    }

    @Override
    public Graph capture(Arena owner, Runnable operations) {
        select();
        CudaStatus.check(
                Cuda.cuStreamBeginCapture_v2(stream, Cuda.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL()), "the start of a capture");
        try {
            operations.run();
        } catch (RuntimeException | Error e) {
            abandonCapture();
            throw e;
        }
        MemorySegment graph = create(result -> Cuda.cuStreamEndCapture(stream, result), "the end of a capture");
        MemorySegment executable;
        try {
            executable = create(result -> Cuda.cuGraphInstantiateWithFlags(result, graph, 0), "a graph");
        } finally {
            Cuda.cuGraphDestroy(graph);
        }
        MemorySegment owned = executable.reinterpret(owner, freed -> {
            if (!closed) {
                Cuda.cuCtxSetCurrent(context);
                Cuda.cuStreamSynchronize(stream);
                Cuda.cuGraphExecDestroy(MemorySegment.ofAddress(freed.address()));
            }
        });
        return () -> {
            select();
            CudaStatus.check(Cuda.cuGraphLaunch(owned, stream), "the launch of a graph");
        };
    }

    /** Ends a capture whose operations failed. What the driver says of it tells less than they do. */
    private void abandonCapture() {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment result = call.allocate(Cuda.C_POINTER);
            if (Cuda.cuStreamEndCapture(stream, result) == Cuda.CUDA_SUCCESS()) {
                Cuda.cuGraphDestroy(result.get(Cuda.C_POINTER, 0));
            }
        }
    }

    @Override
    public double milliseconds(Runnable operations) {
        select();
        try (Arena call = Arena.ofConfined()) {
            MemorySegment start = create(result -> Cuda.cuEventCreate(result, Cuda.CU_EVENT_DEFAULT()), "an event");
            MemorySegment end = create(result -> Cuda.cuEventCreate(result, Cuda.CU_EVENT_DEFAULT()), "an event");
            try {
                CudaStatus.check(Cuda.cuEventRecord(start, stream), "an event");
                operations.run();
                CudaStatus.check(Cuda.cuEventRecord(end, stream), "an event");
                CudaStatus.check(Cuda.cuEventSynchronize(end), "the operations that were timed");
                MemorySegment elapsed = call.allocate(ValueLayout.JAVA_FLOAT);
                CudaStatus.check(Cuda.cuEventElapsedTime_v2(elapsed, start, end), "the time between two events");
                return elapsed.get(ValueLayout.JAVA_FLOAT, 0);
            } finally {
                Cuda.cuEventDestroy_v2(start);
                Cuda.cuEventDestroy_v2(end);
            }
        }
    }

    @Override
    public OptionalLong freeBytes() {
        select();
        try (Arena call = Arena.ofConfined()) {
            MemorySegment free = call.allocate(ValueLayout.JAVA_LONG);
            MemorySegment total = call.allocate(ValueLayout.JAVA_LONG);
            CudaStatus.check(Cuda.cuMemGetInfo_v2(free, total), "the device's free memory");
            return OptionalLong.of(free.get(ValueLayout.JAVA_LONG, 0));
        }
    }

    @Override
    public void synchronize() {
        select();
        CudaStatus.check(Cuda.cuStreamSynchronize(stream), "the operations enqueued before");
    }

    @Override
    public synchronized void close() {
        if (closed) {
            return;
        }
        Cuda.cuCtxSetCurrent(context);
        Cuda.cuStreamSynchronize(stream);
        for (long address : Set.copyOf(allocated)) {
            free(address);
        }
        for (long address : Set.copyOf(stores.keySet())) {
            freeStore(address);
        }
        closed = true;
        pinned.close();
        Cuda.cuStreamDestroy_v2(copies);
        Cuda.cuStreamDestroy_v2(stream);
        arena.close();
        Cuda.cuDevicePrimaryCtxRelease_v2(device);
    }
}
