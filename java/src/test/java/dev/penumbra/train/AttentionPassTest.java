package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.Elements;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.data.Batch;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.AttentionObserver;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.DropoutSeed;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.BlockMask;
import dev.penumbra.tensor.Tensor;
import dev.penumbra.train.SparseFixture.Result;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/** Passes whose heads attend to some blocks of keys only. */
class AttentionPassTest {

    @TempDir
    Path folder;

    private static Backend backend(String name) {
        return name.equals("cpu") ? Backends.open(Device.CPU, 2, true) : new FakeBackend();
    }

    private static void requireEqual(String what, Result found, Result expected, double tolerance) {
        double error = Math.max(Math.abs(found.loss() / expected.loss() - 1),
                PeftFixture.relativeError(found.gradient(), expected.gradient()));
        System.out.printf("%s: %.1e%n", what, error);
        assertThat(error).as(what).isLessThan(tolerance);
    }

    private static Result run(SparseFixture f, AttentionSparsity attention) {
        return f.run(f.open(null, attention), Mode.SPARSE, new DropoutSeed(1, 1));
    }

    private static float[] summaries(SparseFixture f, ModelPass pass) {
        return f.backend.read(pass.attentionChoice().summaries()).floats();
    }

    @ParameterizedTest
    @CsvSource({"cpu, true", "cpu, false", "java, true"})
    void fullListsGiveTheDenseResult(String name, boolean preNorm) throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, backend(name), preNorm)) {
            Result dense = f.dense();
            for (Pass pass : Pass.values()) {
                ModelPass all = f.open(null,
                        AttentionFixture.sparsity(f, AttentionFixture.config(AttentionPolicy.ALL, pass, 1, 1)));
                requireEqual(name + " " + pass + " pre-norm " + preNorm, f.run(all, Mode.SPARSE, null), dense, 2e-5);
                assertThat(summaries(f, all)).containsExactly(1, 1, 0, 1, 1, 0);
                // Every block that weighs anything, by the true masses.
                AttentionSparsity every = new AttentionSparsity(
                        AttentionFixture.config(AttentionPolicy.ORACLE, pass, 0.9, 1), AttentionFixture.HEADS,
                        AttentionFixture.WIDTH, List.of(new AttentionSparsity.Layer(false, 1, null, null, null),
                                new AttentionSparsity.Layer(false, 1, null, null, null)));
                requireEqual(name + " " + pass + " by true masses", run(f, every), dense, 2e-5);
            }
        }
    }

    @ParameterizedTest
    @EnumSource(value = AttentionPolicy.class, names = {"OFF", "EXACT"}, mode = EnumSource.Mode.EXCLUDE)
    void theNativeBackendChoosesAndComputesWhatPlainJavaDoes(AttentionPolicy policy) throws IOException {
        // Each norm style with one of the passes.
        for (Pass pass : Pass.values()) {
            boolean preNorm = pass == Pass.BACKWARD;
            AttentionConfig config = AttentionFixture.config(policy, pass, 0.9, 0.7);
            Result[] results = new Result[2];
            float[][] summaries = new float[2][];
            for (int b = 0; b < 2; b++) {
                try (SparseFixture f = AttentionFixture.open(folder.resolve("" + preNorm), backend(b == 0 ? "java" : "cpu"),
                        preNorm)) {
                    ModelPass open = f.open(null, AttentionFixture.sparsity(f, config));
                    results[b] = f.run(open, Mode.SPARSE, new DropoutSeed(4, 9));
                    summaries[b] = summaries(f, open);
                }
            }
            requireEqual(config.describe() + " pre-norm " + preNorm, results[1], results[0], 1e-4);
            assertThat(summaries[1]).as(config.describe()).containsExactly(summaries[0], within(1e-4f));
        }
    }

    /** A step's loss under a fixed mask is a function of the adapter, whose matrices are moved along their own gradients. */
    @ParameterizedTest
    @CsvSource({"0, true", "1, true", "2, false"})
    void gradientsUnderAFixedMaskAreFiniteDifferences(int mask, boolean preNorm) throws IOException {
        BlockMask.Rule rule = (h, i, j) -> switch (mask) {
            case 0 -> false;
            case 1 -> (i + j + h) % 2 == 0;
            default -> i - j <= h;
        };
        try (SparseFixture f = AttentionFixture.open(folder, backend("cpu"), preNorm)) {
            ModelPass pass = f.open(null, AttentionFixture.fixed(f, Pass.BOTH, rule));
            float[] gradient = f.run(pass, Mode.SPARSE, null).gradient();
            assertThat(summaries(f, pass)[0]).isBetween(0.5f, 0.95f);
            double worst = 0;
            for (LoraAdapter.Site site : f.adapter.sites()) {
                for (boolean a : new boolean[]{true, false}) {
                    int from = Math.toIntExact(a ? site.offsetA() : site.offsetB());
                    long count = (long) site.r() * (a ? site.layer().in() : site.layer().out());
                    float[] part = Arrays.copyOfRange(gradient, from, from + (int) count);
                    double norm = norm(part);
                    // A loss of some thousands is rounded to 3e-4.
                    double length = Math.clamp(0.2 / norm, 2e-3, 2e-2);
                    double found = difference(f, pass, part, from, length / norm) / norm;
                    worst = Math.max(worst, Math.abs(found / norm - 1));
                    assertThat(found).as("mask %d, %s, %s", mask, site.layer().name(), a ? "A" : "B").isCloseTo(norm,
                            within(0.02 * norm));
                }
            }
            System.out.printf("mask %d, pre-norm %s: worst matrix %.1e from finite differences%n", mask, preNorm, worst);
        }
    }

    private static double norm(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += (double) value * value;
        }
        return Math.sqrt(sum);
    }

    private static double difference(SparseFixture f, ModelPass pass, float[] direction, int from, double length) {
        float[] start = f.adapter.parametersToHost();
        double[] losses = new double[2];
        for (int side = 0; side < 2; side++) {
            float[] moved = start.clone();
            for (int i = 0; i < direction.length; i++) {
                moved[from + i] += (float) ((side == 0 ? length : -length) * direction[i]);
            }
            f.adapter.setParameters(moved);
            losses[side] = f.loss(pass, Mode.SPARSE, null);
        }
        f.adapter.setParameters(start);
        return (losses[0] - losses[1]) / (2 * length);
    }

    @ParameterizedTest
    @CsvSource({"ORACLE", "PREDICTED", "STATIC", "RANDOM"})
    void aSparseBackwardPassHasTheExactLossAndAnotherGradient(AttentionPolicy policy) throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, backend("cpu"), true)) {
            Result dense = f.dense();
            Result some = run(f,
                    AttentionFixture.sparsity(f, AttentionFixture.config(policy, Pass.BACKWARD, 1, 0.5)));
            Result both = run(f, AttentionFixture.sparsity(f, AttentionFixture.config(policy, Pass.BOTH, 1, 0.5)));
            assertThat(some.loss()).isEqualTo(dense.loss());
            assertThat(both.loss()).isNotEqualTo(dense.loss());
            for (Result sparse : List.of(some, both)) {
                assertThat(PeftFixture.relativeError(sparse.gradient(), dense.gradient())).isBetween(1e-4, 1.0);
            }
        }
    }

    @ParameterizedTest
    @EnumSource(Pass.class)
    void whatIsSensedIsTheTrueMass(Pass pass) throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, backend("cpu"), true)) {
            ModelPass oracle = f.open(null,
                    AttentionFixture.sparsity(f, AttentionFixture.config(AttentionPolicy.ORACLE, pass, 1, 0.6)));
            oracle.load(f.batch(), null, Mode.SPARSE);
            oracle.sense();
            f.run(oracle, Mode.SPARSE, null);
            float[] told = summaries(f, oracle);
            double[] measured = oracle.attentionChoice().coverage();
            System.out.printf("%s: told %s, measured %s%n", pass, Arrays.toString(told), Arrays.toString(measured));
            // In the first layer of a sparse forward pass, lists are chosen by what is sensed; else by a part of the queries.
            assertThat(measured[0]).isCloseTo(told[1], within(pass == Pass.BOTH ? 1e-5 : 0.02));
            assertThat(measured[1]).isCloseTo(told[SelectBlocks.SUMMARY_SIZE + 1], within(0.05));
            ModelPass random = f.open(null,
                    AttentionFixture.sparsity(f, AttentionFixture.config(AttentionPolicy.RANDOM, pass, 1, 0.6)));
            random.load(f.batch(), new DropoutSeed(2, 2), Mode.SPARSE);
            random.sense();
            f.run(random, Mode.SPARSE, new DropoutSeed(2, 2));
            assertThat(random.attentionChoice().coverage()[0]).isLessThan(measured[0]);
        }
    }

    /** What all keys have in common moves no softmax, so their gradients add up to zero, whichever blocks are kept. */
    @ParameterizedTest
    @EnumSource(Pass.class)
    void gradientsOfKeysAddUpToZero(Pass pass) throws IOException {
        double[] worst = {0};
        int[] lists = {0};
        FakeBackend watching = new FakeBackend() {
            @Override
            public void run(Operation operation) {
                super.run(operation);
                if (operation instanceof AttentionBackward op && op.blocks() != null) {
                    lists[0]++;
                    worst[0] = op.dk() == null ? worst[0] : Math.max(worst[0], sumOfKeys(op.dk()));
                }
            }
        };
        try (SparseFixture f = AttentionFixture.open(folder, watching, true)) {
            run(f, AttentionFixture.sparsity(f, AttentionFixture.config(AttentionPolicy.ORACLE, pass, 1, 0.5)));
        }
        assertThat(lists[0]).as("layers by lists, %s", pass).isEqualTo(2);
        assertThat(worst[0]).as("sum of the keys' gradients beside their lengths, %s", pass).isLessThan(1e-5);
    }

    /** The length of the rows' sum beside the sum of their lengths, of the worst head. */
    private static double sumOfKeys(Tensor dk) {
        double worst = 0;
        for (long head = 0; head < dk.shape().dim(1); head++) {
            double[] sum = new double[(int) dk.shape().dim(2)];
            double lengths = 0;
            for (long row = 0; row < dk.shape().dim(0); row++) {
                double square = 0;
                for (int d = 0; d < sum.length; d++) {
                    double value = Elements.get(dk, row, head, d);
                    sum[d] += value;
                    square += value * value;
                }
                lengths += Math.sqrt(square);
            }
            worst = Math.max(worst, Math.sqrt(Arrays.stream(sum).map(s -> s * s).sum()) / lengths);
        }
        return worst;
    }

    /** What is asked of the backend, in its order. */
    @Test
    void listsAreMadeBeforeTheyAreReadAndExactPassesReadNone() throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, new FakeBackend(), true)) {
            FakeBackend fake = (FakeBackend) f.backend;
            for (Pass pass : Pass.values()) {
                ModelPass open = f.open(null, AttentionFixture.sparsity(f,
                        new AttentionConfig(AttentionPolicy.ORACLE, pass, 0.9, 0.8, AttentionFixture.BLOCK, 0, 0, false)));
                fake.forgetOperations();
                f.run(open, Mode.SPARSE, null);
                List<Boolean> forward = new ArrayList<>();
                List<Boolean> backward = new ArrayList<>();
                List<Integer> strides = new ArrayList<>();
                for (Operation operation : fake.operations()) {
                    switch (operation) {
                        case AttentionForward op -> forward.add(op.blocks() != null);
                        case AttentionBackward op -> backward.add(op.blocks() != null);
                        case AttentionMass op -> strides.add(op.queryStride());
                        default -> {
                        }
                    }
                }
                assertThat(forward).isEqualTo(
                        pass == Pass.BOTH ? List.of(false, true, false, true) : List.of(false, false, true, true));
                assertThat(backward).containsExactly(true, true);
                assertThat(strides).isEqualTo(pass == Pass.BOTH ? List.of(1, 1) : List.of(4, 4));
                fake.forgetOperations();
                f.run(open, Mode.DENSE, null);
                assertThat(fake.operations()).noneMatch(AttentionMass.class::isInstance);
            }
        }
    }

    @Test
    void neuronsAndAttentionAreSparseTogether() throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, backend("cpu"), true)) {
            Result dense = f.dense();
            for (Pass pass : Pass.values()) {
                MlpSparsity allNeurons = f.sparsity(SparseFixture.config(SelectionPolicy.ALL, pass, 1, 1, 0));
                MlpSparsity someNeurons = f.sparsity(SparseFixture.config(SelectionPolicy.ORACLE, pass, 1, 0.6, 0));
                AttentionSparsity allKeys = AttentionFixture.sparsity(f,
                        AttentionFixture.config(AttentionPolicy.ALL, pass, 1, 1));
                AttentionSparsity someKeys = AttentionFixture.sparsity(f,
                        AttentionFixture.config(AttentionPolicy.ORACLE, pass, 1, 0.6));
                requireEqual("all of both, " + pass, f.run(f.open(allNeurons, allKeys), Mode.SPARSE, null), dense, 2e-5);
                ModelPass open = f.open(someNeurons, someKeys);
                open.load(f.batch(), null, Mode.SPARSE);
                open.sense();
                Result some = f.run(open, Mode.SPARSE, null);
                assertThat(PeftFixture.relativeError(some.gradient(), dense.gradient())).isBetween(1e-3, 1.5);
                assertThat(f.summaries(open)[0]).isCloseTo(0.6f, within(1e-6f));
                assertThat(summaries(f, open)[0]).isLessThan(1);
                assertThat(open.blockChoice().coverage()[0]).isBetween(0.5, 0.9999);
                assertThat(open.attentionChoice().coverage()[0]).isBetween(0.5, 0.9999);
                requireEqual("dense after, " + pass, f.run(open, Mode.DENSE, null), dense, 1e-5);
            }
        }
    }

    @Test
    void aBatchOfShortSamplesHasNoLists() throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, new FakeBackend(), true, 1, LoraConfig.OPT_TARGETS)) {
            ModelPass pass = f.open(null,
                    AttentionFixture.sparsity(f, AttentionFixture.config(AttentionPolicy.ALL, Pass.BOTH, 1, 1)));
            pass.load(f.batch(), null, Mode.SPARSE);
            Object lists = pass.signature();
            // Of the longest sample's first tokens.
            int[] ids = Arrays.copyOf(f.batch().ids(), 128);
            Batch two = new Batch(ids, Arrays.copyOf(f.batch().positions(), 128), new int[]{0, 64, 128}, new int[]{3},
                    new int[]{5}, 64, 128);
            assertThat(pass.attentionChoice().hasLists()).isTrue();
            pass.load(two, null, Mode.SPARSE);
            assertThat(pass.attentionChoice().hasLists()).isFalse();
            assertThat(pass.signature()).isNotEqualTo(lists);
            FakeBackend fake = (FakeBackend) f.backend;
            fake.forgetOperations();
            pass.sense();
            pass.forward();
            assertThat(fake.operations()).filteredOn(AttentionForward.class::isInstance).hasSize(2)
                    .allMatch(op -> ((AttentionForward) op).blocks() == null);
            assertThat(summaries(f, pass)).containsExactly(1, 1, 0);
            assertThat(pass.attentionChoice().coverage()).containsExactly(1);
        }
    }

    @ParameterizedTest
    @CsvSource({"true", "false"})
    void anObserverSeesWhatEveryLayersAttentionComputes(boolean preNorm) throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, backend("cpu"), preNorm)) {
            List<Integer> seen = new ArrayList<>();
            AttentionObserver observer = new AttentionObserver() {
                @Override
                public void afterAttention(int layer, Seen of) {
                    seen.add(layer);
                    int rows = Math.toIntExact(of.q().shape().dim(0));
                    assertThat(of.k().shape().dim(1)).isEqualTo(AttentionFixture.HEADS);
                    assertThat(of.maxSeqlen()).isEqualTo(AttentionFixture.POSITIONS);
                    assertThat(of.lse().shape().dim(1)).isEqualTo(rows);
                    if (!preNorm && layer == 0) {
                        assertThat(of.pooled()).isNull();
                        return;
                    }
                    float[] pooled = f.host(of.pooled());
                    assertThat(pooled).hasSize(Math.ceilDiv(rows, 32) * 24);
                    // Means of a norm's outputs, whose scale is near 1.
                    assertThat(norm(pooled)).isGreaterThan(1);
                }

                @Override
                public int poolRows() {
                    return 32;
                }
            };
            f.model.openPass(f.arena, f.adapter, f.shape(), PassOptions.observed(null, observer)).forward(f.batch(), null);
            assertThat(seen).containsExactly(0, 1);
        }
    }

    @Test
    void aPassAllocatesWhatItsPlanSaysAndListsAreSmall() throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, new FakeBackend(), true)) {
            FakeBackend fake = (FakeBackend) f.backend;
            MemoryPlan dense = new MemoryPlan();
            f.model.planPass(dense, f.adapter, f.shape(), PassOptions.DENSE);
            for (Pass pass : Pass.values()) {
                for (AttentionPolicy policy : AttentionPolicy.values()) {
                    PassOptions options = PassOptions.sparse(
                            f.sparsity(SparseFixture.config(SelectionPolicy.ORACLE, pass, 1, 0.4, 0)),
                            AttentionFixture.sparsity(f, AttentionFixture.config(policy, pass, 0.9, 0.4)));
                    MemoryPlan plan = new MemoryPlan();
                    f.model.planPass(plan, f.adapter, f.shape(), options);
                    long before = fake.allocatedBytes();
                    f.model.openPass(f.arena, f.adapter, f.shape(), options);
                    assertThat(fake.allocatedBytes() - before).as(policy + " " + pass).isEqualTo(plan.deviceBytes());
                    assertThat(plan.deviceBytes()).as(policy + " " + pass).isLessThan(dense.deviceBytes() * 5 / 4);
                }
            }
        }
    }

    @Test
    void onlyLayersWithABackwardPassThroughTheirAttentionChooseForIt() throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, new FakeBackend(), true, 3, List.of("fc1", "fc2"))) {
            AttentionSparsity backward = AttentionFixture.sparsity(f,
                    AttentionFixture.config(AttentionPolicy.ORACLE, Pass.BACKWARD, 1, 0.4));
            ModelPass training = f.open(null, backward);
            // The lowest adapter lies above the first layer's attention.
            assertThat(List.of(training.attentionChoice().isSparse(0), training.attentionChoice().isSparse(1),
                    training.attentionChoice().isSparse(2))).containsExactly(false, true, true);
            ModelPass reading = f.model.openPass(f.arena, f.adapter,
                    new PassShape(384, AttentionFixture.POSITIONS, false), PassOptions.sparse(null, backward));
            assertThat(reading.attentionChoice().isSparse(2)).isFalse();
        }
    }

    @Test
    void whatAPassWasNotOpenedForIsRefused() throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, new FakeBackend(), true)) {
            AttentionSparsity exact = AttentionFixture.sparsity(f,
                    AttentionFixture.config(AttentionPolicy.EXACT, Pass.BOTH, 1, 1));
            assertThat(f.open(null, exact).attentionChoice()).isNull();
            AttentionSparsity shorter = AttentionPlanner.plan(f.model,
                    AttentionFixture.config(AttentionPolicy.ORACLE, Pass.BOTH, 0.9, 1), 128, null);
            assertThatThrownBy(() -> f.open(null, shorter))
                    .hasMessageContaining("expected lists of attention blocks for samples of up to 330 tokens");
            ModelPass pass = f.open(null, AttentionFixture.sparsity(f,
                    new AttentionConfig(AttentionPolicy.ORACLE, Pass.BOTH, 0.9, 1, AttentionFixture.BLOCK, 0, 0, false)));
            pass.load(f.batch(), null, Mode.SPARSE);
            assertThatThrownBy(pass::sense).isInstanceOf(IllegalStateException.class);
            assertThatThrownBy(() -> pass.attentionChoice().coverage()).hasMessageContaining("senseEvery=0");
        }
    }
}
