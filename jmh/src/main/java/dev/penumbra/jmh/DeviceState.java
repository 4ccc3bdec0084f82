package dev.penumbra.jmh;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.Graph;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.SplittableRandom;
import java.util.function.Function;
import java.util.function.Supplier;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;

/**
 * A device, and the operands that a benchmark's operations need there.
 *
 * <p>On an asynchronous device an operation is timed as a step runs it: as one of many calls in a graph, each on operands that
 * the device's cache has let go of since their last turn. A call by itself is timed with its launch and two events, several
 * microseconds, and repeated on the same operands it finds them in the cache. JMH's own score is then that of two launches of
 * the graph; what {@link Meter} gives is an operation's.
 */
public abstract class DeviceState extends BenchmarkSizes {

    /** Calls in a graph, at least: beside so many the start of the graph does not count. */
    static final int CALLS = 48;

    /** Several times the 60 MB of an H200's second-level cache, for an operation need not read all that its turn holds. */
    static final long OPERAND_BYTES = 512L << 20;

    /** Operands of less than 2 MB stay in the cache with so many turns. */
    static final int MOST_TURNS = 32;

    private static final int DRAWN = 1 << 20;

    /** In floats, so that a vector load of any dtype finds its alignment. */
    private static final int DRAWN_ALIGNMENT = 64;

    /** From U(-1, 1). All tensors are filled with these, again and again: to draw every value takes longer than to measure. */
    private static final float[] UNIT = unit();

    private final SplittableRandom random = new SplittableRandom(42);
    private final Map<Double, Tensor> drawnWithin = new HashMap<>();
    private int drawnNext;
    private Arena arena;
    private Backend backend;
    private @Nullable Tensor workspace;
    private long operandBytes;
    private @Nullable Graph graph;
    private int calls;
    private Work work;

    @Setup
    public void open() {
        open(Backends.open(new Device(device, 0), threads, true));
    }

    final void open(Backend opened) {
        backend = opened;
        arena = Arena.ofShared();
    }

    @TearDown
    public void close() {
        backend.synchronize();
        arena.close();
        backend.close();
    }

    /**
     * Runs an operation to its end and enters its time and its work.
     *
     * @param turn allocates operands and builds the operation on them; called once for each turn, at the first measurement
     */
    final void measure(Supplier<Work> turn) {
        if (graph == null) {
            graph = capture(turn);
        }
        if (backend.isAsynchronous()) {
            // The device is still busy when the clock starts: it does not see the host launching what is timed.
            graph.launch();
        }
        Meter.add(backend.milliseconds(graph::launch) / calls, work.flops(), work.bytes());
    }

    private Graph capture(Supplier<Work> turn) {
        List<Work> turns = turns(turn);
        work = turns.getFirst();
        calls = backend.isAsynchronous() ? Math.ceilDiv(CALLS, turns.size()) * turns.size() : 1;
        // What a device does on an operation's first run, such as loading its kernels, is not recorded.
        turns.forEach(this::run);
        backend.synchronize();
        return backend.capture(arena, () -> IntStream.range(0, calls).forEach(i -> run(turns.get(i % turns.size()))));
    }

    /** At least two, where there is more than one call, and no more than half of the device's memory takes. */
    private List<Work> turns(Supplier<Work> turn) {
        List<Work> turns = new ArrayList<>();
        long kept = backend.freeBytes().orElse(0) / 2;
        do {
            turns.add(turn.get());
        } while (backend.isAsynchronous() && turns.size() < MOST_TURNS
                && (turns.size() < 2 || operandBytes < OPERAND_BYTES) && backend.freeBytes().orElse(0) > kept);
        return turns;
    }

    private void run(Work call) {
        call.operations().forEach(backend::run);
    }

    /** Runs an operation to its end, outside the measurement. */
    final void runOnce(Operation operation) {
        backend.run(operation);
        backend.synchronize();
    }

    /** The elements of a contiguous f32 tensor. */
    final float[] read(Tensor source) {
        return backend.read(source).floats();
    }

    /** An operation with the workspace that it needs, or with none. As in a step, all have the same. */
    final <T extends Operation> T withWorkspace(Function<@Nullable Tensor, T> operation) {
        long bytes = backend.workspaceBytes(operation.apply(null));
        if (bytes > 0 && (workspace == null || workspace.byteSize() < bytes)) {
            workspace = backend.allocate(arena, DType.U8, Shape.of(bytes));
        }
        return operation.apply(bytes > 0 ? workspace : null);
    }

    /** Zeros. */
    final Tensor zeros(DType dtype, long... dims) {
        Tensor zeros = backend.allocate(arena, dtype, Shape.of(dims));
        operandBytes += zeros.byteSize();
        return zeros;
    }

    /** Values from U(-bound, bound). */
    final Tensor uniform(double bound, DType dtype, long... dims) {
        Tensor drawn = drawnWithin.computeIfAbsent(bound, this::uploadDrawn);
        Tensor values = zeros(dtype, dims);
        long size = values.shape().size();
        Tensor flat = values.reshape(size);
        for (long done = 0; done < size;) {
            int count = Math.toIntExact(Math.min(size - done, DRAWN - drawnNext));
            backend.run(new Convert(drawn.slice(0, drawnNext, drawnNext + count), flat.slice(0, done, done + count)));
            done += count;
            drawnNext = Math.ceilDiv(drawnNext + count, DRAWN_ALIGNMENT) * DRAWN_ALIGNMENT % DRAWN;
        }
        return values;
    }

    private Tensor uploadDrawn(double bound) {
        try (Arena staging = Arena.ofConfined()) {
            Tensor drawn = backend.allocate(arena, DType.F32, Shape.of(DRAWN));
            backend.upload(drawn(staging, bound), drawn);
            return drawn;
        }
    }

    private static Tensor drawn(Arena owner, double bound) {
        float[] values = new float[DRAWN];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) (UNIT[i] * bound);
        }
        return Tensor.of(owner, values);
    }

    private static float[] unit() {
        SplittableRandom random = new SplittableRandom(42);
        float[] values = new float[DRAWN];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) (2 * random.nextDouble() - 1);
        }
        return values;
    }

    /** A ReLU's mask: about half of its bits set. */
    final Tensor mask(long rows, long columns) {
        byte[] bits = new byte[Math.toIntExact(rows * Math.ceilDiv(columns, 8))];
        random.nextBytes(bits);
        return uploaded(Tensor.view(MemorySegment.ofArray(bits), DType.U8, Shape.of(rows, Math.ceilDiv(columns, 8))));
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
        FrozenWeight.Form form = new FrozenWeight.Form(out, in, dtype, true);
        operandBytes += backend.packedBytes(form);
        try (Arena staging = Arena.ofConfined()) {
            Tensor drawn = drawn(staging, 1 / Math.sqrt(in));
            List<Tensor> parts = new ArrayList<>();
            for (long done = 0, rows; done < out; done += rows) {
                rows = Math.min(out - done, DRAWN / in);
                parts.add(drawn.slice(0, 0, rows * in).reshape(rows, in));
            }
            return backend.pack(arena, form, parts);
        }
    }

    static long bytes(Tensor... tensors) {
        return Arrays.stream(tensors).mapToLong(Tensor::byteSize).sum();
    }
}
