package dev.penumbra.jmh;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.SplittableRandom;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/** A device, and the operands that a benchmark's operations need there. */
public abstract class DeviceState extends BenchmarkSizes {

    private final SplittableRandom random = new SplittableRandom(42);
    private Arena arena;
    private Backend backend;

    @Setup
    public void open() {
        backend = Backends.open(new Device(device, 0), threads, true);
        arena = Arena.ofShared();
        prepare();
        backend.synchronize();
    }

    @TearDown
    public void close() {
        backend.synchronize();
        arena.close();
        backend.close();
    }

    /** Allocates the operands and builds the operations. */
    abstract void prepare();

    /** Zeros. */
    final Tensor zeros(DType dtype, long... dims) {
        return backend.allocate(arena, dtype, Shape.of(dims));
    }

    /** Values drawn from U(-bound, bound). */
    final Tensor uniform(double bound, DType dtype, long... dims) {
        Tensor values = zeros(dtype, dims);
        try (Arena staging = Arena.ofConfined()) {
            Tensor wide = backend.allocate(staging, DType.F32, values.shape());
            backend.upload(hostUniform(staging, bound, values.shape()), wide);
            backend.run(new Convert(wide, values));
            backend.synchronize();
        }
        return values;
    }

    final Tensor of(float... values) {
        try (Arena staging = Arena.ofConfined()) {
            return uploaded(Tensor.of(staging, values));
        }
    }

    final Tensor of(int... values) {
        try (Arena staging = Arena.ofConfined()) {
            return uploaded(Tensor.of(staging, values));
        }
    }

    private Tensor uploaded(Tensor host) {
        Tensor tensor = zeros(host.dtype(), host.shape().dims());
        backend.upload(host, tensor);
        backend.synchronize();
        return tensor;
    }

    /** Lists of random blocks, {@code kept} of all and at least one, for every {@code rowsPerList} tokens. */
    final BlockList blocks(int all, double kept, int size, int rowsPerList) {
        int count = Math.max(1, Math.toIntExact(Math.round(kept * all)));
        int lists = Math.ceilDiv(tokens(), rowsPerList);
        Random shuffling = new Random(42);
        int[] indices = IntStream.range(0, lists).flatMap(list -> {
            List<Integer> order = IntStream.range(0, all).boxed().collect(Collectors.toList());
            Collections.shuffle(order, shuffling);
            return order.stream().limit(count).sorted().mapToInt(Integer::intValue);
        }).toArray();
        int[] counts = IntStream.generate(() -> count).limit(lists).toArray();
        return new BlockList(of(indices).reshape(lists, count), of(counts), size, rowsPerList);
    }

    /** A frozen weight W [out, in] with values as a trained layer's, packed for both directions. */
    final FrozenWeight weight(DType dtype, long out, long in) {
        try (Arena staging = Arena.ofConfined()) {
            FrozenWeight.Form form = new FrozenWeight.Form(out, in, dtype, true);
            return backend.pack(arena, form, List.of(hostUniform(staging, 1 / Math.sqrt(in), Shape.of(out, in))));
        }
    }

    private Tensor hostUniform(Arena owner, double bound, Shape of) {
        float[] values = new float[Math.toIntExact(of.size())];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) ((2 * random.nextDouble() - 1) * bound);
        }
        return Tensor.of(owner, values).reshape(of.dims());
    }

    /** The workspace that an operation needs, or null. */
    final @Nullable Tensor workspace(Operation operation) {
        long bytes = backend.workspaceBytes(operation);
        return bytes == 0 ? null : zeros(DType.U8, bytes);
    }

    /** The elements of a contiguous f32 tensor. */
    final float[] read(Tensor source) {
        return backend.read(source).floats();
    }

    /** Runs an operation to its end, outside the measurement. */
    final void runOnce(Operation operation) {
        backend.run(operation);
        backend.synchronize();
    }

    /** Runs an operation to its end and enters its time and its {@link Operation#flops()}. */
    final void measure(Operation operation) {
        measure(operation, operation.flops(), 0);
    }

    /** As {@link #measure(Operation)}, with the work as the caller counts it. */
    final void measure(Operation operation, long flops, long bytes) {
        measure(List.of(operation), flops, bytes);
    }

    /** Runs operations one after another, as one. */
    final void measure(List<? extends Operation> operations, long flops, long bytes) {
        Meter.add(backend.milliseconds(() -> operations.forEach(backend::run)), flops, bytes);
    }
}
