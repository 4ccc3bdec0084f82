package dev.penumbra.backend;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.AdamW;
import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Dropout;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNorm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.backend.op.PredictMass;
import dev.penumbra.backend.op.RelativeMass;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.Function;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Every operation of a device, through FFM and the C ABI, against the plain Java of {@link FakeBackend} on small odd sizes.
 * A subclass names the device.
 */
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
abstract class BackendParity {

    private static final long SEED = 20260101;
    /** Neurons of the products over block lists: three blocks of 128, twelve of 32. */
    private static final int NEURONS = 384;
    private Backend backend;

    abstract Backend open();

    @BeforeAll
    void openBackend() {
        backend = open();
    }

    @AfterAll
    void closeBackend() {
        if (backend != null) {
            backend.close();
        }
    }

    /** One backend's operands, drawn from the same seed for every backend. */
    private record Bench(Backend backend, Arena arena, Random random) {

        Tensor normal(DType dtype, long... dims) {
            return onDevice(onHost(dtype, dims));
        }

        Tensor normal(double deviation, DType dtype, long... dims) {
            Tensor tensor = Tensor.allocate(arena, dtype, Shape.of(dims));
            Elements.forEach(tensor.shape(), index -> Elements.set(tensor, deviation * random.nextGaussian(), index));
            return onDevice(tensor);
        }

        private Tensor onHost(DType dtype, long... dims) {
            Tensor tensor = Tensor.allocate(arena, dtype, Shape.of(dims));
            Elements.forEach(tensor.shape(), index -> Elements.set(tensor, random.nextGaussian(), index));
            return tensor;
        }

        private Tensor onDevice(Tensor host) {
            Tensor device = backend.allocate(arena, host.dtype(), host.shape());
            backend.upload(host, device);
            return device;
        }

        Tensor zeros(DType dtype, long... dims) {
            return backend.allocate(arena, dtype, Shape.of(dims));
        }

        Tensor ints(int... values) {
            return onDevice(Tensor.of(arena, values));
        }

        Tensor floats(float... values) {
            return onDevice(Tensor.of(arena, values));
        }

        /** The elements of a result, which may be a view, in row-major order. */
        double[] read(Tensor result) {
            Tensor packed = result;
            if (!result.isContiguous()) {
                packed = backend.allocate(arena, result.dtype(), result.shape());
                backend.run(new Convert(result, packed));
            }
            Tensor host = Tensor.allocate(arena, packed.dtype(), packed.shape());
            backend.download(packed, host);
            return Elements.toArray(host);
        }

        FrozenWeight weight(DType dtype, int out, int in, Tensor... parts) {
            return backend.pack(arena, new FrozenWeight.Form(out, in, dtype, true), List.of(parts));
        }

        /** Two lists, of 128 rows each: these blocks of the first, the last block of the second. */
        BlockList blocks(int size, int... chosen) {
            int capacity = chosen.length + 1;
            int[] indices = new int[2 * capacity];
            Arrays.fill(indices, Integer.MAX_VALUE); // what follows a count is not read
            System.arraycopy(chosen, 0, indices, 0, chosen.length);
            indices[capacity] = NEURONS / size - 1;
            Tensor flat = ints(indices);
            return new BlockList(flat.reshape(2, capacity), ints(chosen.length, 1), size, 128);
        }

        /** Lists of attention's blocks for a batch; what follows a count is not a block's number. */
        AttentionBlocks attentionBlocks(int heads, int tokens, int[] borders, int size, ReferenceAttention.Choice choice) {
            AttentionBlocks host = roomForBlocks(heads, tokens, borders, size,
                    dims -> Tensor.allocate(arena, DType.I32, Shape.of(dims)));
            Stream.of(host.indices(), host.transposedIndices()).forEach(t -> Elements.forEach(t.shape(),
                    index -> Elements.set(t, Integer.MAX_VALUE, index)));
            ReferenceAttention.write(host, Tensor.of(arena, borders), choice);
            return new AttentionBlocks(onDevice(host.indices()), onDevice(host.counts()),
                    onDevice(host.transposedIndices()), onDevice(host.transposedCounts()), onDevice(host.order()), size);
        }

        static AttentionBlocks roomForBlocks(int heads, int tokens, int[] borders, int size,
                Function<long[], Tensor> allocate) {
            int longest = IntStream.range(1, borders.length).map(s -> borders[s] - borders[s - 1]).max().orElseThrow();
            long slots = AttentionBlocks.slots(tokens, borders.length - 1, size);
            long[] lists = {heads, slots, Math.ceilDiv(longest, size)};
            long[] counts = {heads, slots};
            return new AttentionBlocks(allocate.apply(lists), allocate.apply(counts), allocate.apply(lists),
                    allocate.apply(counts), allocate.apply(new long[]{2, heads * slots}), size);
        }

        /** What the order says whatever it is among equal counts: which places it holds, and the counts along it. */
        List<Tensor> places(AttentionBlocks lists) {
            double[] order = read(lists.order());
            List<Tensor> results = new ArrayList<>();
            for (int side = 0; side < 2; side++) {
                double[] counts = read(side == 0 ? lists.counts() : lists.transposedCounts());
                double[] own = Arrays.copyOfRange(order, side * order.length / 2, (side + 1) * order.length / 2);
                results.add(ints(Arrays.stream(own).mapToInt(at -> at < 0 ? -1 : (int) counts[(int) at]).toArray()));
                results.add(ints(Arrays.stream(own).mapToInt(at -> (int) at).sorted().toArray()));
            }
            return results;
        }

        Dropout dropout(float p, int stream) {
            Tensor state = Tensor.allocate(arena, DType.U64, Shape.of(2));
            state.segment().setAtIndex(ValueLayout.JAVA_LONG_UNALIGNED, 0, 0x123456789abcdefL);
            state.segment().setAtIndex(ValueLayout.JAVA_LONG_UNALIGNED, 1, 7);
            return new Dropout(p, stream, onDevice(state));
        }

        /** Builds without a workspace, asks how much is needed, builds again with it, and runs that. */
        void run(Function<Tensor, Operation> operation) {
            long bytes = backend.workspaceBytes(operation.apply(null));
            backend.run(operation.apply(zeros(DType.U8, Math.max(64, bytes))));
        }
    }

    /** Runs the case on both and compares what it returns: relative L2 below {@code tolerance}, tensor by tensor. */
    private void same(String name, double tolerance, Function<Bench, List<Tensor>> body) {
        try (Arena arena = Arena.ofConfined();
                FakeBackend fake = new FakeBackend()) {
            Bench device = new Bench(backend, arena, new Random(SEED));
            Bench reference = new Bench(fake, arena, new Random(SEED));
            List<Tensor> found = body.apply(device);
            List<Tensor> expected = body.apply(reference);
            for (int i = 0; i < expected.size(); i++) {
                double[] x = device.read(found.get(i));
                double[] y = reference.read(expected.get(i));
                double error = 0;
                double norm = 0;
                for (int j = 0; j < y.length; j++) {
                    error += Math.pow(x[j] - y[j], 2);
                    norm += Math.pow(y[j], 2);
                }
                assertThat(norm).as("%s: result %d must not be all zero", name, i).isPositive();
                assertThat(Math.sqrt(error / norm))
                        .as("%s, seed %d: result %d %s, relative L2 error", name, SEED, i, found.get(i))
                        .isLessThan(tolerance);
            }
        }
    }

    /** Of one rounding to {@code dtype}, with room for f32 accumulation. */
    private static double tolerance(DType dtype) {
        return dtype == DType.BF16 ? 4e-3 : 1e-5;
    }

    static Stream<DType> computed() {
        return Stream.of(DType.F32, DType.BF16);
    }

    @Test
    void fillsStridedViewsOfEveryDtype() {
        same("fill", 1e-7, b -> {
            Tensor f = b.zeros(DType.F32, 5, 7);
            Tensor u = b.zeros(DType.U8, 3, 5);
            Tensor i = b.zeros(DType.I32, 9);
            b.backend.run(new Fill(2.5f, f.slice(1, 2, 5).transpose()));
            b.backend.run(new Fill(200, u));
            b.backend.run(new Fill(-3, i));
            return List.of(f, u, i);
        });
    }

    @ParameterizedTest
    @CsvSource({"F32,BF16", "BF16,F32", "F16,F32", "F16,BF16", "F32,F32"})
    void convertsBetweenDtypesAndStrides(DType from, DType to) {
        same("convert", 1e-7, b -> {
            Tensor s = b.normal(from, 3, 5, 7);
            Tensor d = b.zeros(to, 7, 5, 3);
            b.backend.run(new Convert(s, d.transpose(0, 2)));
            return List.of(d);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void multipliesByPackedWeightsWithEverythingAttached(DType dtype) {
        same("gemm forward", tolerance(dtype), b -> {
            Tensor a = b.normal(dtype, 5, 13);
            FrozenWeight w = b.weight(dtype, 19, 13, b.onHost(DType.F16, 8, 13), b.onHost(DType.F32, 11, 13));
            List<LowRank> terms = List.of(
                    new LowRank(b.normal(DType.F32, 5, 3), b.normal(DType.F32, 7, 3), 2, 0.5f, null),
                    new LowRank(b.normal(DType.F32, 5, 2), b.normal(DType.F32, 2, 9).transpose(), 10, 2,
                            b.dropout(0.25f, 3)));
            Tensor bias = b.normal(DType.F32, 19);
            Tensor mask = b.zeros(DType.U8, 5, 3);
            Tensor residual = b.normal(dtype, 5, 19);
            Tensor d = b.zeros(dtype, 5, 19);
            b.run(space -> Gemm.forward(a, w, d)
                    .lowRank(terms)
                    .bias(bias)
                    .relu(mask)
                    .residual(residual)
                    .workspace(space)
                    .build());
            return List.of(d, mask);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void multipliesBackwardThroughTheReluMask(DType dtype) {
        same("gemm backward", tolerance(dtype), b -> {
            Tensor dy = b.normal(dtype, 5, 19);
            FrozenWeight w = b.weight(dtype, 19, 13, b.onHost(DType.BF16, 19, 13));
            Tensor mask = b.zeros(DType.U8, 5, 2);
            b.backend.run(new Fill(0x5a, mask));
            Tensor d = b.zeros(dtype, 5, 13);
            b.run(space -> Gemm.backward(dy, w, d).drelu(mask).workspace(space).build());
            return List.of(d);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void multipliesEveryTransposeAndAddsInPlace(DType dtype) {
        for (int layout = 0; layout < 4; layout++) {
            boolean ta = (layout & 1) != 0;
            boolean tb = (layout & 2) != 0;
            same("gemm product " + layout, tolerance(dtype), b -> {
                Tensor a = ta ? b.normal(dtype, 11, 3).transpose() : b.normal(dtype, 3, 11);
                Tensor m = tb ? b.normal(dtype, 5, 11).transpose() : b.normal(dtype, 11, 5);
                Tensor d = b.normal(dtype, 3, 5);
                b.run(space -> Gemm.product(a, m, d).residual(d).workspace(space).build());
                return List.of(d);
            });
        }
    }

    @ParameterizedTest
    @MethodSource("computed")
    void projectsAndDifferentiatesLora(DType dtype) {
        same("lora", 1e-5, b -> {
            Tensor x = b.normal(dtype, 7, 13);
            Tensor a = b.normal(DType.F32, 3, 13);
            Tensor up = b.normal(DType.F32, 9, 3);
            Dropout dropout = b.dropout(0.3f, 5);
            Tensor h = b.zeros(DType.F32, 7, 3);
            Tensor dh = b.zeros(DType.F32, 7, 3);
            Tensor da = b.normal(DType.F32, 3, 13);
            Tensor db = b.normal(DType.F32, 9, 3);
            Tensor dy = b.normal(dtype, 7, 20).slice(1, 4, 13);
            b.run(space -> new LoraProject(x, a, dropout, h));
            b.run(space -> new LoraGradients(2, dy, x, h, a, up, dropout, dh, da, db, space));
            return List.of(h, dh, da, db);
        });
    }

    /** Rows of two lists, the second shorter. */
    private static final int LISTED_ROWS = 131;

    @ParameterizedTest
    @MethodSource("computed")
    void projectsWhatItNorms(DType dtype) {
        for (float p : new float[]{0, 0.3f}) {
            same("projection of a norm, dropout " + p, tolerance(dtype), b -> {
                Tensor x = b.normal(dtype, 37, 256);
                Tensor gamma = b.normal(DType.F32, 256);
                Tensor beta = b.normal(DType.F32, 256);
                Tensor y = b.zeros(dtype, 37, 256);
                Tensor mean = b.zeros(DType.F32, 37);
                Tensor rstd = b.zeros(DType.F32, 37);
                Tensor pooled = b.zeros(DType.F32, 3, 256);
                Tensor h = b.zeros(DType.F32, 37, 4);
                Tensor other = b.zeros(DType.F32, 37, 3);
                Dropout dropout = p == 0 ? null : b.dropout(p, 5);
                LoraProject second = new LoraProject(y, b.normal(DType.F32, 3, 256), dropout, other);
                LoraProject first = new LoraProject(y, b.normal(DType.F32, 4, 256), dropout, h, null, second);
                b.backend.run(new LayerNormForward(x, gamma, beta, 1e-5f, y, mean, rstd,
                        new LayerNormForward.Pooling(pooled, 16, b.ints(36)), first));
                return List.of(y, mean, rstd, pooled, h, other);
            });
        }
    }

    @ParameterizedTest
    @MethodSource("computed")
    void differentiatesLoraOfANorm(DType dtype) {
        for (float p : new float[]{0, 0.3f}) {
            // Of a normed row in bf16 a backend may keep no more than its rounding.
            same("lora of a norm, dropout " + p, tolerance(dtype), b -> {
                Tensor x = b.normal(dtype, LISTED_ROWS, 64);
                Tensor gamma = b.normal(DType.F32, 64);
                Tensor beta = b.normal(DType.F32, 64);
                Tensor mean = b.zeros(DType.F32, LISTED_ROWS);
                Tensor rstd = b.zeros(DType.F32, LISTED_ROWS);
                Tensor normed = b.zeros(dtype, LISTED_ROWS, 64);
                b.backend.run(new LayerNormForward(x, gamma, beta, 1e-5f, normed, mean, rstd));
                LayerNorm norm = new LayerNorm(mean, rstd, gamma, beta);
                LoraTensors one = new LoraTensors(b, 64, 40, 4);
                LoraTensors other = new LoraTensors(b, 64, 40, 3);
                Tensor dy = b.normal(dtype, LISTED_ROWS, 80);
                Dropout dropout = p == 0 ? null : b.dropout(p, 5);
                LoraGradients second = new LoraGradients(2, dy.slice(1, 40, 80), x, other.h, other.a, other.b, dropout,
                        norm, other.dh, other.da, other.db, null, null, null, null);
                b.run(space -> new LoraGradients(2, dy.slice(1, 0, 40), x, one.h, one.a, one.b, dropout, norm, one.dh,
                        one.da, one.db, null, null, second, space));
                return List.of(one.dh, one.da, one.db, other.dh, other.da, other.db);
            });
        }
    }

    static Stream<Arguments> blocks() {
        return computed().flatMap(dtype -> Stream.of(32, 64, 128).map(size -> Arguments.of(dtype, size)));
    }

    /** Blocks 0 and the last but one of {@code size} neurons: neither all nor neighbours, except where there are only three. */
    private static BlockList someBlocks(Bench b, int size) {
        return b.blocks(size, 0, NEURONS / size - 2);
    }

    @ParameterizedTest
    @MethodSource("blocks")
    void multipliesIntoListedBlocks(DType dtype, int size) {
        same("sdd", tolerance(dtype), b -> {
            BlockList list = someBlocks(b, size);
            Tensor a = b.normal(dtype, LISTED_ROWS, 24);
            FrozenWeight w = b.weight(dtype, NEURONS, 24, b.onHost(DType.F32, NEURONS, 24));
            Tensor bias = b.normal(DType.F32, NEURONS);
            Tensor mask = b.zeros(DType.U8, LISTED_ROWS, NEURONS / 8);
            b.backend.run(new Fill(0x5a, mask));
            List<LowRank> terms = List.of(
                    new LowRank(b.normal(DType.F32, LISTED_ROWS, 3), b.normal(DType.F32, NEURONS, 3), 0, 0.5f,
                            b.dropout(0.25f, 3)),
                    new LowRank(b.normal(DType.F32, LISTED_ROWS, 2), b.normal(DType.F32, 2, 200).transpose(), 100, 2,
                            null));
            Tensor plain = b.zeros(dtype, LISTED_ROWS, list.width());
            Tensor d = b.zeros(dtype, LISTED_ROWS, list.width());
            Tensor back = b.zeros(dtype, LISTED_ROWS, list.width());
            b.run(space -> Gemm.forward(a, w, plain).blocks(list).bias(bias).relu(null).workspace(space).build());
            b.run(space -> Gemm.forward(a, w, d).blocks(list).bias(bias).relu(mask).lowRank(terms).workspace(space)
                    .build());
            b.run(space -> Gemm.forward(a, w, back).blocks(list).drelu(mask).workspace(space).build());
            return List.of(plain, d, mask, back);
        });
    }

    @ParameterizedTest
    @MethodSource("blocks")
    void keepsReluMasksOfListedBlocksAsCompactAsWhatTheyMask(DType dtype, int size) {
        same("sdd with a compact mask", tolerance(dtype), b -> {
            BlockList list = someBlocks(b, size);
            Tensor a = b.normal(dtype, LISTED_ROWS, 24);
            FrozenWeight w = b.weight(dtype, NEURONS, 24, b.onHost(DType.F32, NEURONS, 24));
            Tensor mask = b.zeros(DType.U8, LISTED_ROWS, list.width() / 8);
            b.backend.run(new Fill(0x5a, mask));
            Tensor d = b.zeros(dtype, LISTED_ROWS, list.width());
            Tensor back = b.zeros(dtype, LISTED_ROWS, list.width());
            b.run(space -> Gemm.forward(a, w, d).blocks(list).relu(mask).workspace(space).build());
            b.run(space -> Gemm.forward(a, w, back).blocks(list).drelu(mask).workspace(space).build());
            return List.of(d, mask, back);
        });
    }

    @ParameterizedTest
    @MethodSource("blocks")
    void multipliesFromListedBlocks(DType dtype, int size) {
        same("dsd", tolerance(dtype), b -> {
            BlockList list = someBlocks(b, size);
            Tensor a = b.normal(dtype, LISTED_ROWS, Math.toIntExact(list.width()));
            FrozenWeight w = b.weight(dtype, NEURONS, 40, b.onHost(DType.F32, NEURONS, 40));
            Tensor residual = b.normal(dtype, LISTED_ROWS, 40);
            Tensor d = b.zeros(dtype, LISTED_ROWS, 40);
            Tensor sum = b.normal(dtype, LISTED_ROWS, 40);
            List<LowRank> terms = List.of(
                    new LowRank(b.normal(DType.F32, LISTED_ROWS, 3), b.normal(DType.F32, 40, 3), 0, 0.5f, null));
            b.run(space -> Gemm.backward(a, w, d).blocks(list).residual(residual).bias(b.normal(DType.F32, 40))
                    .workspace(space).build());
            b.run(space -> Gemm.backward(a, w, sum).blocks(list).residual(sum).lowRank(terms).workspace(space)
                    .build());
            return List.of(d, sum);
        });
    }

    @ParameterizedTest
    @MethodSource("blocks")
    void projectsAndDifferentiatesLoraOfListedBlocks(DType dtype, int size) {
        same("lora of blocks", 1e-5, b -> {
            BlockList list = someBlocks(b, size);
            int width = Math.toIntExact(list.width());
            List<Tensor> results = new ArrayList<>();
            // fc2's adapter reads the compact activation; fc1's, beside another one, gives a compact gradient.
            Tensor hidden = b.normal(dtype, LISTED_ROWS, width);
            LoraTensors down = new LoraTensors(b, NEURONS, 24, 4);
            LoraTensors up = new LoraTensors(b, 24, NEURONS, 4);
            LoraTensors beside = new LoraTensors(b, 24, NEURONS, 3);
            Tensor x = b.normal(dtype, LISTED_ROWS, 24);
            Dropout dropout = b.dropout(0.3f, 5);
            b.run(space -> new LoraProject(hidden, down.a, dropout, down.h, list, null));
            b.run(space -> new LoraProject(x, up.a, dropout, up.h, null,
                    new LoraProject(x, beside.a, null, beside.h)));
            b.run(space -> new LoraGradients(2, b.normal(dtype, LISTED_ROWS, 24), hidden, down.h, down.a, down.b, dropout,
                    null, down.dh, down.da, down.db, list, null, null, space));
            LoraGradients second = new LoraGradients(2, b.normal(dtype, LISTED_ROWS, width), x, beside.h, beside.a,
                    beside.b, null, null, beside.dh, beside.da, beside.db, null, list, null, null);
            Tensor dy = b.normal(dtype, LISTED_ROWS, width);
            b.run(space -> new LoraGradients(2, dy, x, up.h, up.a, up.b, dropout, null, up.dh, up.da, up.db, null, list,
                    second, space));
            Stream.of(down, up, beside).forEach(t -> results.addAll(List.of(t.h, t.dh, t.da, t.db)));
            return results;
        });
    }

    /** One adapter's operands and results. */
    private record LoraTensors(Tensor a, Tensor b, Tensor h, Tensor dh, Tensor da, Tensor db) {
        LoraTensors(Bench bench, int in, int out, int rank) {
            this(bench.normal(DType.F32, rank, in), bench.normal(DType.F32, out, rank),
                    bench.zeros(DType.F32, LISTED_ROWS, rank), bench.zeros(DType.F32, LISTED_ROWS, rank),
                    bench.normal(DType.F32, rank, in), bench.normal(DType.F32, out, rank));
        }
    }

    @ParameterizedTest
    @MethodSource("blocks")
    void measuresMass(DType dtype, int size) {
        same("activation mass", 1e-5, b -> {
            Tensor x = b.normal(dtype, LISTED_ROWS, NEURONS);
            Tensor mask = b.zeros(DType.U8, LISTED_ROWS, NEURONS / 8);
            b.backend.run(new Fill(0x5a, mask));
            Tensor norms = b.zeros(DType.F32, NEURONS);
            b.backend.run(new Fill(0.25f, norms));
            Tensor mass = b.zeros(DType.F32, 2, NEURONS / size);
            Tensor neurons = b.normal(DType.F32, NEURONS);
            Tensor fired = b.normal(DType.F32, NEURONS);
            Tensor ofBits = b.zeros(DType.F32, 1, NEURONS / size);
            b.run(space -> new ActivationMass(x, null, norms, b.ints(129), size, 128, mass, neurons, fired, space));
            b.run(space -> new ActivationMass(null, mask, norms, null, size, LISTED_ROWS, ofBits, null, null, space));
            return List.of(mass, neurons, fired, ofBits);
        });
    }

    @ParameterizedTest
    @CsvSource({"1,12", "32,3"})
    void predictsMass(int unitsPerScore, int scores) {
        same("predicted mass", 1e-5, b -> {
            Tensor pooled = b.normal(DType.F32, 11, 40);
            Tensor a = b.normal(DType.F32, 5, 40);
            Tensor up = b.normal(DType.F32, unitsPerScore * scores, 5);
            Tensor bias = b.normal(DType.F32, unitsPerScore * scores);
            Tensor norms = b.normal(DType.F32, unitsPerScore * scores);
            Tensor found = b.zeros(DType.F32, 2, scores);
            Tensor plain = b.zeros(DType.F32, 1, scores);
            b.run(space -> new PredictMass(pooled, a, up, bias, norms, unitsPerScore, 8, found, space));
            b.run(space -> new PredictMass(pooled, a, up, null, null, unitsPerScore, 11, plain, space));
            return List.of(found, plain);
        });
    }

    @Test
    void scoresBlocksByTheSeedsRule() {
        same("relative mass", 1e-5, b -> {
            Tensor mass = b.floats(spiked(4 * 32));
            Tensor scores = b.zeros(DType.F32, 1, 4);
            b.backend.run(new RelativeMass(mass, 32, 0.05f, 0.9f, scores));
            return List.of(scores);
        });
    }

    /** Neurons' masses: alike in the first half, one far above the others in every block of the second. */
    private static float[] spiked(int neurons) {
        float[] mass = new float[neurons];
        for (int j = 0; j < neurons; j++) {
            mass[j] = j < neurons / 2 ? 1 + j % 3 : j % 32 == 5 ? 100 : 1;
        }
        return mass;
    }

    @ParameterizedTest
    @CsvSource({"0.5,12", "0.9,12", "0.9,3", "1,12"})
    void selectsTheHeaviestBlocks(float coverage, int capacity) {
        same("selection", 1e-6, b -> {
            Tensor scores = b.normal(DType.F32, 3, 12);
            Tensor indices = b.zeros(DType.I32, 3, capacity);
            b.backend.run(new Fill(-7, indices)); // what follows a count is not written
            Tensor counts = b.zeros(DType.I32, 3);
            Tensor summary = b.zeros(DType.F32, SelectBlocks.SUMMARY_SIZE);
            b.backend.run(new SelectBlocks(scores, coverage, new BlockList(indices, counts, 32, 128), summary));
            return List.of(indices, counts, summary);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void poolsWhatItNormalises(DType dtype) {
        same("pooled layer norm", 2 * tolerance(dtype), b -> {
            Tensor x = b.normal(dtype, 21, 17);
            Tensor y = b.zeros(dtype, 21, 17);
            Tensor pooled = b.normal(DType.F32, 3, 17);
            Tensor all = b.normal(DType.F32, 3, 17);
            Tensor gamma = b.normal(DType.F32, 17);
            Tensor beta = b.normal(DType.F32, 17);
            b.backend.run(new LayerNormForward(x, gamma, beta, 1e-5f, y, null, null,
                    new LayerNormForward.Pooling(pooled, 8, b.ints(13)), null));
            b.backend.run(new LayerNormForward(x, gamma, beta, 1e-5f, y, null, null,
                    new LayerNormForward.Pooling(all, 8, null), null));
            return List.of(y, pooled, all);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void attendsWithinSamplesOnly(DType dtype) {
        same("attention", 2 * tolerance(dtype), b -> {
            Tensor q = b.normal(dtype, 13, 3, 8);
            Tensor k = b.normal(dtype, 13, 3, 8);
            Tensor v = b.normal(dtype, 13, 3, 8);
            Tensor o = b.normal(dtype, 13, 3, 8);
            Tensor lse = b.zeros(DType.F32, 3, 13);
            Tensor borders = b.ints(0, 5, 5, 6, 11); // an empty sample, one of one token, two rows of none
            b.backend.run(new AttentionForward(0.35f, q, k, v, o, lse, borders, borders, 5, null));
            Tensor dO = b.normal(dtype, 13, 3, 8);
            Tensor dq = b.normal(dtype, 13, 3, 8);
            Tensor dk = b.normal(dtype, 13, 3, 8);
            Tensor dv = b.normal(dtype, 13, 3, 8);
            b.run(space -> new AttentionBackward(0.35f, q, k, v, o, lse, dO, dq, dk, dv, borders, 5, null, space));
            return List.of(o, lse.slice(1, 0, 11), dq, dk, dv);
        });
    }

    /** Three blocks, none, one, and two of 128 rows, then rows of no sample. */
    private static final int[] LISTED_BORDERS = {0, 300, 300, 310, 440};
    private static final int LISTED_TOKENS = 450;
    private static final int LONGEST = 300;
    private static final int HEADS = 2;

    /** Head 0 keeps some blocks; head 1 has a list without its diagonal, and one of nothing. */
    private static boolean keeps(int head, int sample, int queryBlock, int keyBlock) {
        return head == 0
                ? queryBlock == keyBlock || (queryBlock + keyBlock + sample) % 2 == 0
                : queryBlock != 1 && (keyBlock == 0 || queryBlock != 2);
    }

    @ParameterizedTest
    @CsvSource({"F32,64", "BF16,64", "BF16,80", "BF16,128"})
    void attendsToListedBlocks(DType dtype, int headDim) {
        same("attention by lists", 2 * tolerance(dtype), b -> {
            Tensor q = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            Tensor k = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            Tensor v = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            Tensor o = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            Tensor lse = b.zeros(DType.F32, HEADS, LISTED_TOKENS);
            Tensor borders = b.ints(LISTED_BORDERS);
            AttentionBlocks lists = b.attentionBlocks(HEADS, LISTED_TOKENS, LISTED_BORDERS, 128, BackendParity::keeps);
            b.backend.run(new AttentionForward(0.125f, q, k, v, o, lse, borders, borders, LONGEST, lists));
            Tensor dO = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            Tensor dq = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            Tensor dk = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            Tensor dv = b.normal(dtype, LISTED_TOKENS, HEADS, headDim);
            b.run(space -> new AttentionBackward(0.125f, q, k, v, o, lse, dO, dq, dk, dv, borders, LONGEST, lists, space));
            return List.of(o, lse.slice(1, 0, 440), dq, dk, dv);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void differentiatesListedBlocksOfAnExactForwardPass(DType dtype) {
        same("listed gradients", 2 * tolerance(dtype), b -> {
            Tensor q = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor k = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor v = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor o = b.zeros(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor lse = b.zeros(DType.F32, HEADS, LISTED_TOKENS);
            Tensor borders = b.ints(LISTED_BORDERS);
            AttentionBlocks lists = b.attentionBlocks(HEADS, LISTED_TOKENS, LISTED_BORDERS, 128, BackendParity::keeps);
            b.backend.run(new AttentionForward(0.125f, q, k, v, o, lse, borders, borders, LONGEST, null));
            Tensor dO = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor dq = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor dk = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor dv = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            b.run(space -> new AttentionBackward(0.125f, q, k, v, o, lse, dO, dq, dk, dv, borders, LONGEST, lists, space));
            return List.of(dq, dk, dv);
        });
    }

    @ParameterizedTest
    @CsvSource({"F32,1", "BF16,1", "F32,8", "BF16,8"})
    void measuresAttentionMass(DType dtype, int queryStride) {
        same("attention mass", 1e-5, b -> {
            Tensor q = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor k = b.normal(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor o = b.zeros(dtype, LISTED_TOKENS, HEADS, 64);
            Tensor lse = b.zeros(DType.F32, HEADS, LISTED_TOKENS);
            Tensor borders = b.ints(LISTED_BORDERS);
            Tensor mass = b.normal(DType.F32, HEADS, AttentionBlocks.slots(LISTED_TOKENS, 4, 128), 4);
            b.backend.run(new AttentionForward(0.125f, q, k, k, o, lse, borders, borders, LONGEST, null));
            b.backend.run(new AttentionMass(0.125f, q, k, lse, borders, LONGEST, 128, queryStride, mass));
            return List.of(mass);
        });
    }

    @ParameterizedTest
    @CsvSource({"32,8,40", "32,16,300", "64,64,40"})
    void predictsAttention(int poolRows, int rank, int hidden) {
        same("predicted attention", 1e-5, b -> {
            Tensor pooled = b.normal(DType.F32, Math.ceilDiv(LISTED_TOKENS, poolRows), hidden);
            // Scores of about 1: a softmax that one key has to itself would say nothing of the others.
            Tensor a = b.normal(Math.pow(rank, -0.25) / Math.sqrt(hidden), DType.BF16, 2, HEADS, rank, hidden);
            Tensor bias = b.normal(DType.F32, 2, HEADS, rank);
            Tensor distance = b.normal(DType.F32, HEADS, 4);
            Tensor mass = b.normal(DType.F32, HEADS, AttentionBlocks.slots(LISTED_TOKENS, 4, 128), 4);
            b.run(space -> new PredictAttention(pooled, poolRows, a, bias, distance, b.ints(LISTED_BORDERS),
                    LISTED_TOKENS, LONGEST, 128, mass, space));
            return List.of(mass);
        });
    }

    @ParameterizedTest
    @CsvSource({"0.5,1", "0.9,1", "1,1", "1,0.6", "0.95,0.7"})
    void selectsAttention(float coverage, float budget) {
        int[] borders = {0, 1500, 1500, 1510, 1640};
        int tokens = 1650;
        same("selection of attention", 1e-6, b -> {
            List<Tensor> results = new ArrayList<>();
            for (boolean byTable : new boolean[]{false, true}) {
                AttentionBlocks lists = Bench.roomForBlocks(3, tokens, borders, 128, dims -> b.zeros(DType.I32, dims));
                b.backend.run(new Fill(-7, lists.indices())); // what follows a count is not written
                b.backend.run(new Fill(-7, lists.transposedIndices()));
                Tensor mass = b.normal(DType.F32, 3, byTable ? lists.width() : lists.slots(), lists.width());
                Tensor budgets = budget == 1 ? null : b.floats(budget, 0.9f * budget, 0.8f * budget);
                Tensor summary = b.zeros(DType.F32, SelectBlocks.SUMMARY_SIZE);
                b.run(space -> new SelectAttention(byTable ? null : mass, byTable ? mass : null, budgets, coverage,
                        b.ints(borders), tokens, 1500, lists, summary, space));
                results.addAll(List.of(lists.indices(), lists.counts(), lists.transposedIndices(),
                        lists.transposedCounts(), summary));
                results.addAll(b.places(lists));
            }
            return results;
        });
    }

    @Test
    void attendsToCachedKeys() {
        same("attention with a cache", 1e-5, b -> {
            Tensor q = b.normal(DType.F32, 3, 2, 8);
            Tensor k = b.normal(DType.F32, 11, 2, 8);
            Tensor v = b.normal(DType.F32, 11, 2, 8);
            Tensor o = b.zeros(DType.F32, 3, 2, 8);
            b.backend.run(new AttentionForward(0.35f, q, k, v, o, null, b.ints(0, 1, 3), b.ints(0, 4, 11), 7, null));
            return List.of(o);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void normalisesLayers(DType dtype) {
        same("layer norm", 2 * tolerance(dtype), b -> {
            Tensor x = b.normal(dtype, 5, 17);
            Tensor gamma = b.normal(DType.F32, 17);
            Tensor y = b.zeros(dtype, 5, 17);
            Tensor mean = b.zeros(DType.F32, 5);
            Tensor rstd = b.zeros(DType.F32, 5);
            b.backend.run(new LayerNormForward(x, gamma, b.normal(DType.F32, 17), 1e-5f, y, mean, rstd));
            Tensor dx = b.normal(dtype, 5, 17);
            b.backend.run(new LayerNormBackward(b.normal(dtype, 5, 17), x, mean, rstd, gamma, dx, dx));
            return List.of(y, mean, rstd, dx);
        });
    }

    @ParameterizedTest
    @EnumSource(value = DType.class, names = {"F32", "BF16", "F16"})
    void embedsTokensAndPositions(DType table) {
        same("embedding", tolerance(DType.F32), b -> {
            Tensor d = b.zeros(DType.F32, 4, 9);
            b.backend.run(new Embedding(
                    b.ints(6, 0, 3, 3), b.normal(table, 7, 9), b.ints(0, 1, 0, 2), b.normal(table, 5, 9), 2,
                    b.normal(DType.F32, 4, 9), d));
            return List.of(d);
        });
    }

    @ParameterizedTest
    @MethodSource("computed")
    void computesTheLossOfSupervisedRows(DType dtype) {
        same("linear cross-entropy", 2 * tolerance(dtype), b -> {
            Tensor x = b.normal(dtype, 7, 13);
            FrozenWeight w = b.weight(dtype, 29, 13, b.onHost(DType.F32, 29, 13));
            Tensor loss = b.floats(0.5f);
            Tensor dx = b.normal(dtype, 7, 13);
            b.run(space -> new LinearCrossEntropy(x, w, b.ints(1, 2, 6, LinearCrossEntropy.NO_ROW), b.ints(28, 0, 5, 0),
                    b.floats(0.25f), loss, dx,
                    space));
            return List.of(loss, dx);
        });
    }

    @ParameterizedTest
    @CsvSource({"0", "0.5", "1000"})
    void updatesAsAdamW(float maxNorm) {
        same("adamw", 1e-5, b -> {
            Tensor param = b.normal(DType.F32, 37);
            Tensor grad = b.normal(DType.F32, 37);
            Tensor m = b.normal(DType.F32, 37);
            Tensor v = b.zeros(DType.F32, 37);
            b.backend.run(new Fill(0.25f, v));
            Tensor norm = b.zeros(DType.F32, 1);
            b.run(space -> new AdamW(
                    param, grad, m, v, 0.9f, 0.999f, 1e-8f, 0.1f, maxNorm, b.floats(1e-2f, 0.19f, 0.002f), norm, space));
            return List.of(param, m, v, norm);
        });
    }

    @Test
    void leavesParametersAloneWhenTheNormIsNotFinite() {
        try (Arena arena = Arena.ofConfined()) {
            Bench b = new Bench(backend, arena, new Random(SEED));
            Tensor param = b.floats(1, 2, 3);
            Tensor grad = b.floats(1, Float.NaN, 3);
            Tensor m = b.floats(0, 0, 0);
            Tensor v = b.floats(0, 0, 0);
            Tensor norm = b.floats(0);
            b.run(space -> new AdamW(
                    param, grad, m, v, 0.9f, 0.999f, 1e-8f, 0.1f, 1, b.floats(0.1f, 0.1f, 0.1f), norm, space));
            assertThat(b.read(norm)[0]).isNaN();
            assertThat(b.read(param)).containsExactly(1, 2, 3);
            assertThat(b.read(m)).containsExactly(0, 0, 0);
        }
    }

    @Test
    void findsTheFirstElementThatIsNotFinite() {
        try (Arena arena = Arena.ofConfined()) {
            assertThat(backend.findNotFinite(Tensor.of(arena, 1, 2, Float.POSITIVE_INFINITY, Float.NaN))).isEqualTo(2);
            assertThat(backend.findNotFinite(Tensor.of(arena, 1f, 2f))).isEqualTo(-1);
        }
    }

    @Test
    void readsWhatWasEnqueuedBeforeAndReplaysWhatWasRecorded() {
        try (Arena arena = Arena.ofConfined()) {
            Bench b = new Bench(backend, arena, new Random(SEED));
            Tensor sum = b.floats(1, 2);
            Tensor copy = b.floats(0, 0);
            backend.run(new Convert(sum, copy));
            Graph graph = backend.capture(arena, () -> {
                backend.run(new Fill(7, sum));
                backend.run(new Convert(sum, copy));
            });
            Readback before = backend.read(copy);
            graph.launch();
            Readback after = backend.read(copy);
            assertThat(before.floats()).containsExactly(1, 2);
            assertThat(after.floats()).containsExactly(7, 7);
            backend.run(new Fill(0, copy));
            graph.launch();
            assertThat(b.read(copy)).containsExactly(7, 7);
        }
    }
}
