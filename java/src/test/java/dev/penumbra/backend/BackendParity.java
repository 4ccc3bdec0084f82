package dev.penumbra.backend;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.op.AdamW;
import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Dropout;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.Random;
import java.util.function.Function;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
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
            b.backend.run(new AttentionForward(0.35f, q, k, v, o, lse, borders, borders, 5));
            Tensor dO = b.normal(dtype, 13, 3, 8);
            Tensor dq = b.normal(dtype, 13, 3, 8);
            Tensor dk = b.normal(dtype, 13, 3, 8);
            Tensor dv = b.normal(dtype, 13, 3, 8);
            b.run(space -> new AttentionBackward(0.35f, q, k, v, o, lse, dO, dq, dk, dv, borders, 5, space));
            return List.of(o, lse.slice(1, 0, 11), dq, dk, dv);
        });
    }

    @Test
    void attendsToCachedKeys() {
        same("attention with a cache", 1e-5, b -> {
            Tensor q = b.normal(DType.F32, 3, 2, 8);
            Tensor k = b.normal(DType.F32, 11, 2, 8);
            Tensor v = b.normal(DType.F32, 11, 2, 8);
            Tensor o = b.zeros(DType.F32, 3, 2, 8);
            b.backend.run(new AttentionForward(0.35f, q, k, v, o, null, b.ints(0, 1, 3), b.ints(0, 4, 11), 7));
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
