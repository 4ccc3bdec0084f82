package dev.penumbra.internal.ffi;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.BackendException;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.Graph;
import dev.penumbra.backend.HostStore;
import dev.penumbra.backend.Readback;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.internal.ffi.penumbra.Penumbra;
import dev.penumbra.internal.ffi.penumbra.pnb_context_params;
import dev.penumbra.internal.ffi.penumbra.pnb_tensor;
import dev.penumbra.internal.ffi.penumbra.pnb_weight_params;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.HashSet;
import java.util.List;
import java.util.OptionalLong;
import java.util.Set;

/** The backend over the C ABI: every operation is one call with its params struct in a confined arena of its own. */
public final class NativeBackend implements Backend {

    private final Device device;
    private final String description;
    private final MemorySegment context;
    private final DeviceMemory memory;
    private final Set<NativeWeight> weights = new HashSet<>();
    private volatile boolean closed;

    private NativeBackend(Device device, MemorySegment context, DeviceMemory memory, String description) {
        this.device = device;
        this.context = context;
        this.memory = memory;
        this.description = description;
    }

    /** As {@link dev.penumbra.backend.Backends#open}. */
    public static NativeBackend open(Device device, int threads, boolean deterministic) {
        if (device.isHost()) {
            NativeLibrary.load();
        } else {
            // Where there is no GPU, that says more than which library was not found for it.
            CudaMemory.requireDriver();
            NativeLibrary.loadCuda();
        }
        // The driver's context first: the library's runtime then finds it and uses the same one.
        DeviceMemory memory = device.isHost() ? new HostMemory() : CudaMemory.open(device.ordinal());
        try (Arena call = Arena.ofConfined()) {
            MemorySegment params = pnb_context_params.allocate(call).fill((byte) 0);
            pnb_context_params.struct_size(params, Math.toIntExact(params.byteSize()));
            pnb_context_params.device(params, device.isHost() ? Penumbra.PNB_DEVICE_CPU() : Penumbra.PNB_DEVICE_CUDA());
            pnb_context_params.ordinal(params, device.ordinal());
            pnb_context_params.threads(params, threads);
            pnb_context_params.deterministic(params, deterministic ? 1 : 0);
            MemorySegment result = call.allocate(Penumbra.C_POINTER);
            NativeStatus.check(Penumbra.pnb_context_create(params, result));
            MemorySegment context = result.get(Penumbra.C_POINTER, 0);
            try {
                NativeStatus.check(Penumbra.pnb_context_describe(context, result));
                return new NativeBackend(device, context, memory, result.get(Penumbra.C_POINTER, 0).getString(0));
            } catch (RuntimeException e) {
                Penumbra.pnb_context_destroy(context);
                throw e;
            }
        } catch (RuntimeException e) {
            memory.close();
            throw e;
        }
    }

    @Override
    public Device device() {
        return device;
    }

    @Override
    public String describe() {
        return description;
    }

    /** A GPU's residual stream would cost twice the memory traffic in f32. */
    @Override
    public DType residualDType(DType computed) {
        return device.isHost() ? DType.F32 : computed;
    }

    /** Where operations are enqueued. */
    MemorySegment stream() {
        return memory.stream();
    }

    @Override
    public Tensor allocate(Arena owner, DType dtype, Shape shape) {
        requireOpen();
        return memory.allocate(owner, dtype, shape);
    }

    @Override
    public void upload(Tensor source, Tensor target) {
        requireCopy(source, target);
        memory.upload(source, target);
    }

    @Override
    public void download(Tensor source, Tensor target) {
        requireCopy(source, target);
        memory.download(source, target);
    }

    private void requireCopy(Tensor source, Tensor target) {
        requireOpen();
        if (source.dtype() != target.dtype() || !source.shape().equals(target.shape())) {
            throw new IllegalArgumentException(
                    "expected a copy between equal dtypes and shapes, found " + source + " to " + target);
        }
        if (!source.isContiguous() || !target.isContiguous()) {
            throw new IllegalArgumentException("expected a copy between contiguous tensors, found "
                    + (source.isContiguous() ? "a target " + target : "a source " + source) + " that is not");
        }
    }

    @Override
    public Readback read(Tensor source) {
        requireOpen();
        return memory.read(source);
    }

    @Override
    public HostStore hostStore(Arena owner, long bytes) {
        requireOpen();
        return memory.hostStore(owner, bytes);
    }

    @Override
    public boolean isAsynchronous() {
        return memory.isAsynchronous();
    }

    @Override
    public Graph capture(Arena owner, Runnable operations) {
        requireOpen();
        return memory.capture(owner, operations);
    }

    @Override
    public double milliseconds(Runnable operations) {
        requireOpen();
        return memory.milliseconds(operations);
    }

    @Override
    public OptionalLong freeBytes() {
        requireOpen();
        return memory.freeBytes();
    }

    @Override
    public OptionalLong hostFreeBytes() {
        return HostMemory.availableBytes();
    }

    @Override
    public long packedBytes(FrozenWeight.Form form) {
        requireOpen();
        try (Arena call = Arena.ofConfined()) {
            return storageBytes(call, describedParams(call, form));
        }
    }

    @Override
    public FrozenWeight planned(Arena owner, FrozenWeight.Form form) {
        requireOpen();
        try (Arena call = Arena.ofConfined()) {
            MemorySegment params = describedParams(call, form);
            return create(owner, form, call, params, Tensor.planned(DType.U8, Shape.of(storageBytes(call, params))));
        }
    }

    @Override
    public FrozenWeight pack(Arena owner, FrozenWeight.Form form, List<Tensor> parts) {
        requireOpen();
        requireParts(form, parts);
        try (Arena call = Arena.ofConfined()) {
            MemorySegment array = pnb_tensor.allocateArray(parts.size(), call).fill((byte) 0);
            for (int i = 0; i < parts.size(); i++) {
                TensorStruct.write(pnb_tensor.asSlice(array, i), parts.get(i));
            }
            MemorySegment params = weightParams(call, form, array, parts.size());
            long bytes = storageBytes(call, params);
            Tensor storage = allocate(owner, DType.U8, Shape.of(Math.max(1, bytes)));
            pnb_weight_params.storage(params, MemorySegment.ofAddress(storage.address()));
            pnb_weight_params.storage_bytes(params, storage.byteSize());
            pnb_weight_params.stream(params, stream());
            return create(owner, form, call, params, storage);
        }
    }

    private FrozenWeight create(Arena owner, FrozenWeight.Form form, Arena call, MemorySegment params, Tensor storage) {
        MemorySegment result = call.allocate(Penumbra.C_POINTER);
        NativeStatus.check(Penumbra.pnb_weight_create(context, params, result));
        NativeWeight weight = new NativeWeight(this, owner, form, result.get(Penumbra.C_POINTER, 0), storage);
        synchronized (weights) {
            weights.add(weight);
        }
        return weight;
    }

    /** One part of the form's shape, without data or storage. */
    private static MemorySegment describedParams(Arena call, FrozenWeight.Form form) {
        MemorySegment part = pnb_tensor.allocate(call).fill((byte) 0);
        pnb_tensor.dtype(part, form.dtype().code());
        pnb_tensor.rank(part, 2);
        pnb_tensor.shape(part, 0, form.out());
        pnb_tensor.shape(part, 1, form.in());
        pnb_tensor.stride(part, 0, form.in());
        pnb_tensor.stride(part, 1, 1);
        return weightParams(call, form, part, 1);
    }

    private static void requireParts(FrozenWeight.Form form, List<Tensor> parts) {
        long rows = 0;
        for (Tensor part : parts) {
            if (!part.isHost() || part.shape().rank() != 2 || part.shape().dim(1) != form.in()) {
                throw new IllegalArgumentException("expected host parts [rows, " + form.in() + "], found " + part);
            }
            rows += part.shape().dim(0);
        }
        if (rows != form.out()) {
            throw new IllegalArgumentException("expected parts of " + form.out() + " rows together, found " + rows);
        }
    }

    private static MemorySegment weightParams(Arena call, FrozenWeight.Form form, MemorySegment parts, int count) {
        MemorySegment params = pnb_weight_params.allocate(call).fill((byte) 0);
        pnb_weight_params.struct_size(params, Math.toIntExact(params.byteSize()));
        pnb_weight_params.dtype(params, form.dtype().code());
        pnb_weight_params.uses(params,
                Penumbra.PNB_WEIGHT_FORWARD() | (form.backward() ? Penumbra.PNB_WEIGHT_BACKWARD() : 0));
        pnb_weight_params.part_count(params, count);
        pnb_weight_params.parts(params, parts);
        return params;
    }

    private long storageBytes(Arena call, MemorySegment params) {
        MemorySegment bytes = call.allocate(Penumbra.C_LONG);
        NativeStatus.check(Penumbra.pnb_weight_storage(context, params, bytes));
        return bytes.get(Penumbra.C_LONG, 0);
    }

    /** The owner of {@code weight} closes. */
    void forget(NativeWeight weight, MemorySegment pointer) {
        synchronized (weights) {
            weights.remove(weight);
        }
        weight.destroy(pointer);
    }

    @Override
    public void run(Operation operation) {
        requireOpen();
        try (Arena call = Arena.ofConfined()) {
            NativeCall encoded = new ParamsEncoder(call, this, true).encode(operation);
            NativeStatus.check(encoded.entry().call(context, encoded.params()));
        }
    }

    @Override
    public long workspaceBytes(Operation operation) {
        requireOpen();
        try (Arena call = Arena.ofConfined()) {
            NativeCall encoded = new ParamsEncoder(call, this, false).encode(operation);
            if (encoded.workspace() == null) {
                return 0;
            }
            MemorySegment bytes = call.allocate(Penumbra.C_LONG);
            NativeStatus.check(encoded.workspace().call(context, encoded.params(), bytes));
            return bytes.get(Penumbra.C_LONG, 0);
        }
    }

    @Override
    public long findNotFinite(Tensor host) {
        requireOpen();
        try (Arena call = Arena.ofConfined()) {
            if (!host.isHost()) {
                throw new IllegalArgumentException("expected host memory, found a device's " + host);
            }
            MemorySegment struct = pnb_tensor.allocate(call).fill((byte) 0);
            TensorStruct.write(struct, host);
            MemorySegment index = call.allocate(Penumbra.C_LONG);
            NativeStatus.check(Penumbra.pnb_find_not_finite(context, struct, index));
            return index.get(Penumbra.C_LONG, 0);
        }
    }

    @Override
    public long internalBytes() {
        requireOpen();
        try (Arena call = Arena.ofConfined()) {
            MemorySegment bytes = call.allocate(Penumbra.C_LONG);
            NativeStatus.check(Penumbra.pnb_context_memory(context, bytes));
            return bytes.get(Penumbra.C_LONG, 0);
        }
    }

    @Override
    public void synchronize() {
        requireOpen();
        memory.synchronize();
    }

    @Override
    public void close() {
        if (closed) {
            return;
        }
        closed = true;
        try {
            memory.synchronize();
        } catch (BackendException failed) {
            // The device failed before: its memory and weights go all the same.
        }
        synchronized (weights) {
            weights.forEach(NativeWeight::destroy);
            weights.clear();
        }
        Penumbra.pnb_context_destroy(context);
        memory.close();
    }

    private void requireOpen() {
        if (closed) {
            throw new IllegalStateException("expected an open backend: this one of " + device + " was closed");
        }
    }

    @Override
    public String toString() {
        return "backend on " + device;
    }
}
