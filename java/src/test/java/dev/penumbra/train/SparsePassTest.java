package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Sample;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.model.MlpObserver;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.DropoutSeed;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import dev.penumbra.train.SparseFixture.Result;
import java.io.IOException;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.assertj.core.api.ThrowableAssert.ThrowingCallable;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Steps that compute only some blocks of their MLPs' neurons. */
class SparsePassTest {

    @TempDir
    Path folder;

    private static Backend backend(String name) {
        return name.equals("cpu") ? Backends.open(Device.CPU, 2, true) : new FakeBackend();
    }

    private static double error(Result found, Result expected) {
        return Math.max(Math.abs(found.loss() / expected.loss() - 1),
                PeftFixture.relativeError(found.gradient(), expected.gradient()));
    }

    private static void requireEqual(String what, Result found, Result expected, double tolerance) {
        double error = error(found, expected);
        System.out.printf("%s: %.1e%n", what, error);
        assertThat(error).as(what).isLessThan(tolerance);
    }

    @ParameterizedTest
    @CsvSource({"cpu, true", "cpu, false", "java, true", "java, false"})
    void aFullListGivesTheDenseResult(String name, boolean preNorm) throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend(name), preNorm)) {
            Result dense = f.dense();
            for (Pass pass : Pass.values()) {
                MlpSparsity all = f.sparsity(SparseFixture.config(SelectionPolicy.ALL, pass, 1, 1, 0));
                requireEqual(name + " " + pass + " pre-norm " + preNorm, f.sparse(all), dense, 1e-5);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"cpu, true", "cpu, false", "java, true"})
    void leavingOutDeadBlocksGivesTheDenseResult(String name, boolean preNorm) throws IOException {
        // The second and the last block never fire.
        try (SparseFixture f = new SparseFixture(folder, backend(name), preNorm, 3, SparseFixture.ALL,
                neuron -> neuron / SparseFixture.BLOCK == 1 || neuron / SparseFixture.BLOCK == 4, List.of())) {
            Result dense = f.dense();
            for (Pass pass : Pass.values()) {
                MlpSparsity exact = f.sparsity(SparseFixture.config(SelectionPolicy.EXACT, pass, 1, 1, 0));
                ModelPass open = f.open(exact);
                requireEqual(name + " " + pass, f.run(open, Mode.SPARSE, null), dense, 1e-5);
                float[] summaries = f.summaries(open);
                assertThat(summaries).as("kept, covered and cut of three layers")
                        .containsExactly(0.6f, 1, 0, 0.6f, 1, 0, 0.6f, 1, 0);
            }
        }
    }

    @ParameterizedTest
    @EnumSource(value = SelectionPolicy.class, names = "OFF", mode = EnumSource.Mode.EXCLUDE)
    void theNativeBackendChoosesAndComputesWhatPlainJavaDoes(SelectionPolicy policy) throws IOException {
        // Each norm style with one of the passes, and with one or several lists.
        for (Pass pass : Pass.values()) {
            boolean preNorm = pass == Pass.BACKWARD;
            int rows = pass == Pass.BOTH && policy != SelectionPolicy.SEED ? 128 : 0;
            SparsityConfig config = SparseFixture.config(policy, pass, 0.8, 0.6, rows);
            Result[] results = new Result[2];
            float[][] summaries = new float[2][];
            for (int b = 0; b < 2; b++) {
                try (SparseFixture f = new SparseFixture(folder.resolve("" + preNorm), backend(b == 0 ? "java" : "cpu"),
                        preNorm)) {
                    ModelPass open = f.open(f.sparsity(config));
                    results[b] = f.run(open, Mode.SPARSE, new DropoutSeed(4, 9));
                    summaries[b] = f.summaries(open);
                }
            }
            requireEqual(config.describe() + " pre-norm " + preNorm, results[1], results[0], 1e-4);
            assertThat(summaries[1]).as(config.describe()).containsExactly(summaries[0], within(1e-4f));
        }
    }

    /**
     * A step's loss under a fixed mask is a function of the adapter. Each of its matrices is moved along its own gradient,
     * where a short way changes the loss enough to be seen in f32 and meets few of ReLU's kinks.
     */
    @ParameterizedTest
    @CsvSource({"'0,1,2,3,4', true", "'2', true", "'0,3,4', true", "'1,4', false", "'', true"})
    void gradientsUnderAFixedMaskAreFiniteDifferences(String mask, boolean preNorm) throws IOException {
        int[] blocks = mask.isEmpty() ? new int[0] : Arrays.stream(mask.split(",")).mapToInt(Integer::parseInt).toArray();
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), preNorm)) {
            ModelPass pass = f.open(f.fixed(Pass.BOTH, blocks));
            requireFiniteDifferences("mask {" + mask + "}, pre-norm " + preNorm, f, pass, Mode.SPARSE, null);
            assertThat(f.summaries(pass)[0]).isCloseTo(blocks.length / 5f, within(1e-6f));
        }
    }

    /** Each band of a dense batch draws its own dropout, and draws it again. */
    @ParameterizedTest
    @EnumSource(Mode.class)
    void gradientsWithDropoutAreFiniteDifferencesInBandsAndUnderLists(Mode mode) throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), true, 3, SparseFixture.ALL, n -> false, List.of(),
                0.2)) {
            // The second layer is dense among sparse ones.
            MlpSparsity sparsity = f.sparsity(SparseFixture.config(SelectionPolicy.STATIC, Pass.BOTH, 1, 0.4, 0));
            List<MlpSparsity.Layer> layers = new ArrayList<>(sparsity.layers());
            layers.set(1, new MlpSparsity.Layer(SparseFixture.BLOCKS, 1, layers.get(1).scores(), null,
                    layers.get(1).activationNorms(), layers.get(1).gradientNorms()));
            ModelPass pass = f.open(new MlpSparsity(sparsity.config(), sparsity.neurons(), layers));
            assertThat(pass.blockChoice().isSparse(1)).isFalse();
            requireFiniteDifferences("dropout, " + mode, f, pass, mode, new DropoutSeed(3, 8));
        }
    }

    private static void requireFiniteDifferences(String what, SparseFixture f, ModelPass pass, Mode mode,
            @Nullable DropoutSeed seed) {
        float[] gradient = f.run(pass, mode, seed).gradient();
        double worst = 0;
        for (LoraAdapter.Site site : f.adapter.sites()) {
            for (boolean a : new boolean[]{true, false}) {
                long from = a ? site.offsetA() : site.offsetB();
                long count = (long) site.r() * (a ? site.layer().in() : site.layer().out());
                float[] part = Arrays.copyOfRange(gradient, (int) from, (int) (from + count));
                double norm = norm(part);
                if (norm == 0) {
                    // Nothing flows through an MLP without neurons.
                    assertThat(what).contains("{}");
                    assertThat(site.layer().kind()).startsWith("fc");
                    continue;
                }
                // A loss of about 1000 is rounded to 1e-4.
                double length = Math.clamp(0.02 / norm, 2e-3, 2e-2);
                double found = difference(f, pass, mode, seed, part, (int) from, length / norm) / norm;
                worst = Math.max(worst, Math.abs(found / norm - 1));
                assertThat(found).as("%s, %s, %s", what, site.layer().name(), a ? "A" : "B").isCloseTo(norm,
                        within(0.015 * norm));
            }
        }
        System.out.printf("%s: worst matrix %.1e from finite differences%n", what, worst);
    }

    private static double norm(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += (double) value * value;
        }
        return Math.sqrt(sum);
    }

    private static double difference(SparseFixture f, ModelPass pass, Mode mode, @Nullable DropoutSeed seed,
            float[] direction, int from, double length) {
        float[] start = f.adapter.parametersToHost();
        double[] losses = new double[2];
        for (int side = 0; side < 2; side++) {
            float[] moved = start.clone();
            for (int i = 0; i < direction.length; i++) {
                moved[from + i] += (float) ((side == 0 ? length : -length) * direction[i]);
            }
            f.adapter.setParameters(moved);
            losses[side] = f.loss(pass, mode, seed);
        }
        f.adapter.setParameters(start);
        return (losses[0] - losses[1]) / (2 * length);
    }

    /** In a single layer the gradient is linear in what its mask keeps of the MLP. */
    @ParameterizedTest
    @CsvSource({"cpu, true", "cpu, false", "java, true"})
    void gradientsOfAMaskAndOfItsComplementAddUp(String name, boolean preNorm) throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend(name), preNorm, 1, SparseFixture.ALL, n -> false,
                List.of())) {
            Result dense = f.dense();
            Result none = f.sparse(f.fixed(Pass.BACKWARD));
            for (int[][] parts : new int[][][]{{{3}, {0, 1, 2, 4}}, {{0, 2, 4}, {1, 3}}, {{}, {0, 1, 2, 3, 4}}}) {
                Result some = f.sparse(f.fixed(Pass.BACKWARD, parts[0]));
                Result others = f.sparse(f.fixed(Pass.BACKWARD, parts[1]));
                float[] sum = new float[dense.gradient().length];
                for (int i = 0; i < sum.length; i++) {
                    sum[i] = some.gradient()[i] + others.gradient()[i] - none.gradient()[i];
                }
                assertThat(some.loss()).as("an exact forward pass").isEqualTo(dense.loss());
                double error = PeftFixture.relativeError(sum, dense.gradient());
                System.out.printf("%s: %d blocks and their complement: %.1e%n", name, parts[0].length, error);
                assertThat(error).isLessThan(1e-5);
                assertThat(PeftFixture.relativeError(some.gradient(), dense.gradient())).isGreaterThan(1e-3);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"true, 0, q_proj k_proj v_proj out_proj fc1 fc2", "false, 0, q_proj k_proj v_proj out_proj fc1 fc2",
            "true, 128, q_proj k_proj v_proj out_proj fc1 fc2", "true, 0, fc2", "false, 0, fc2", "true, 0, fc1",
            "true, 128, q_proj v_proj", "false, 0, q_proj v_proj"})
    void aDenseBatchThroughCompactBuffersIsDense(boolean preNorm, int rows, String targets) throws IOException {
        String name = targets + " pre-norm " + preNorm;
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), preNorm, 3, Set.of(targets.split(" ")), n -> false,
                List.of())) {
            Result dense = f.dense();
            ModelPass pass = f.open(f.sparsity(SparseFixture.config(SelectionPolicy.PREDICTED, Pass.BOTH, 1, 0.2, rows)));
            Result first = f.run(pass, Mode.DENSE, null);
            requireEqual(name + " in bands", first, dense, 1e-5);
            Result sparse = f.run(pass, Mode.SPARSE, null);
            assertThat(error(sparse, dense)).isGreaterThan(1e-3);
            pass.sense();
            requireEqual(name + " after a sparse batch", f.run(pass, Mode.DENSE, null), dense, 1e-5);
            assertThat(f.run(pass, Mode.SPARSE, null)).usingRecursiveComparison().isEqualTo(sparse);
        }
    }

    @ParameterizedTest
    @CsvSource({"BOTH, 0", "BOTH, 128", "BACKWARD, 0", "BACKWARD, 128"})
    void whatIsSensedIsTheTrueMass(Pass pass, int rows) throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), true)) {
            MlpSparsity some = f.fixed(pass, 0, 3);
            ModelPass open = f.open(some);
            open.load(f.batch(), null, Mode.SPARSE);
            open.sense();
            f.run(open, Mode.SPARSE, null);
            double[] measured = open.blockChoice().coverage();
            double[] expected = coverage(f, some, pass, 0, 3);
            System.out.printf("%s: measured %s%n", pass, Arrays.toString(measured));
            assertThat(measured).containsExactly(expected, within(1e-5));
            MlpSparsity predicted = f.sparsity(SparseFixture.config(SelectionPolicy.PREDICTED, pass, 1, 0.4, rows));
            ModelPass other = f.open(predicted);
            other.load(f.batch(), null, Mode.SPARSE);
            other.sense();
            f.run(other, Mode.SPARSE, null);
            for (double c : other.blockChoice().coverage()) {
                assertThat(c).isBetween(0.05, 0.95);
            }
        }
    }

    @Test
    void aPassByListsShowsAllNeuronsOfItsDenseBatches() throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), true)) {
            List<byte[]> shown = new ArrayList<>();
            List<byte[]> kept = new ArrayList<>();
            MlpObserver observer = (layer, input, pooled, activation, mask, validRows) -> shown.add(bytes(f, mask));
            MlpSparsity lists = f.sparsity(SparseFixture.config(SelectionPolicy.PREDICTED, Pass.BOTH, 1, 0.2, 0));
            for (MlpSparsity sparsity : new MlpSparsity[]{null, lists}) {
                f.model.openPass(f.arena, f.adapter, f.shape(), new PassOptions(sparsity, null, observer, null, 0, false))
                        .forward(f.batch(), null);
                PassShape keeping = new PassShape(f.shape().tokens(), SparseFixture.POSITIONS, true, true);
                ModelPass pass = f.model.openPass(f.arena, f.adapter, keeping, PassOptions.sparse(sparsity));
                pass.forward(f.batch(), null);
                pass.reluMasks().forEach(mask -> kept.add(bytes(f, mask.bits())));
            }
            for (List<byte[]> masks : List.of(shown, kept)) {
                assertThat(masks).hasSize(6);
                for (int i = 0; i < 3; i++) {
                    assertThat(masks.get(3 + i)).as("mask of layer " + i).isEqualTo(masks.get(i));
                }
            }
        }
    }

    private static byte[] bytes(SparseFixture f, Tensor device) {
        Tensor host = Tensor.allocate(f.arena, device.dtype(), device.shape());
        f.backend.download(device, host);
        return host.segment().toArray(ValueLayout.JAVA_BYTE);
    }

    /** From the activations of a dense pass, on the host. */
    private static double[] coverage(SparseFixture f, MlpSparsity sparsity, Pass pass, int... blocks) {
        Set<Integer> kept = new HashSet<>();
        for (int block : blocks) {
            kept.add(block);
        }
        double[] coverage = new double[3];
        int tokens = f.batch().tokens();
        MlpObserver observer = (layer, input, pooled, activation, mask, validRows) -> {
            float[] h = f.host(activation);
            MlpSparsity.Layer of = sparsity.layers().get(layer);
            double all = 0;
            double covered = 0;
            for (int t = 0; t < tokens; t++) {
                for (int j = 0; j < SparseFixture.BLOCKS * SparseFixture.BLOCK; j++) {
                    float x = h[t * SparseFixture.BLOCKS * SparseFixture.BLOCK + j];
                    double value = pass == Pass.BOTH
                            ? x * of.activationNorms()[j]
                            : x > 0 ? of.gradientNorms()[j] : 0;
                    all += value;
                    covered += kept.contains(j / SparseFixture.BLOCK) ? value : 0;
                }
            }
            coverage[layer] = covered / all;
        };
        f.model.openPass(f.arena, f.adapter, f.shape(), PassOptions.observed(observer)).forward(f.batch(), null);
        return coverage;
    }

    @Test
    void randomBlocksFollowTheSeedAndTheStep() throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), true)) {
            ModelPass pass = f.open(f.sparsity(SparseFixture.config(SelectionPolicy.RANDOM, Pass.BOTH, 1, 0.4, 0)));
            Result first = f.run(pass, Mode.SPARSE, new DropoutSeed(7, 3));
            assertThat(f.summaries(pass)[0]).isEqualTo(0.4f);
            assertThat(f.run(pass, Mode.SPARSE, new DropoutSeed(7, 4)).loss()).isNotEqualTo(first.loss());
            assertThat(f.run(pass, Mode.SPARSE, new DropoutSeed(8, 3)).loss()).isNotEqualTo(first.loss());
            assertThat(f.run(pass, Mode.SPARSE, new DropoutSeed(7, 3))).usingRecursiveComparison().isEqualTo(first);
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void aSparsePassNeedsLessMemoryThanADenseOne(boolean adaptsFc2) throws IOException {
        Set<String> targets = adaptsFc2 ? SparseFixture.ALL : Set.of("q_proj", "v_proj");
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), true, 3, targets, n -> false, List.of())) {
            PassShape shape = new PassShape(1024, SparseFixture.POSITIONS, true);
            long dense = bytes(f, shape, PassOptions.DENSE);
            long both = bytes(f, shape, PassOptions.sparse(
                    f.sparsity(SparseFixture.config(SelectionPolicy.PREDICTED, Pass.BOTH, 1, 0.2, 0))));
            long backward = bytes(f, shape, PassOptions.sparse(
                    f.sparsity(SparseFixture.config(SelectionPolicy.ORACLE, Pass.BACKWARD, 1, 0.2, 0))));
            System.out.printf("activations: dense %d, both %d, backward %d bytes%n", dense, both, backward);
            assertThat(both).isLessThan(dense);
            // Lists and scores are small.
            assertThat(backward - dense).isLessThan(dense / 50);
        }
    }

    private static long bytes(SparseFixture f, PassShape shape, PassOptions options) {
        MemoryPlan plan = plan(f, shape, options);
        return plan.bytes(MemoryPlan.Kind.ACTIVATIONS) + plan.bytes(MemoryPlan.Kind.WORKSPACE);
    }

    private static MemoryPlan plan(SparseFixture f, PassShape shape, PassOptions options) {
        MemoryPlan plan = new MemoryPlan();
        f.model.planPass(plan, f.adapter, shape, options);
        return plan;
    }

    /** A training pass keeps each layer's; layers of others share the widest. */
    @ParameterizedTest
    @CsvSource({"BOTH, true, 7", "BOTH, false, 3", "BACKWARD, true, 15", "BACKWARD, false, 5"})
    void masksTakeABitForEachNeuronThatHasRoomInTheForwardPass(Pass pass, boolean training, int blocks) throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), true)) {
            MlpSparsity two = f.sparsity(SparseFixture.config(SelectionPolicy.STATIC, pass, 1, 0.4, 0));
            List<MlpSparsity.Layer> layers = new ArrayList<>(two.layers());
            MlpSparsity.Layer middle = layers.get(1);
            layers.set(1, new MlpSparsity.Layer(3, middle.coverage(), middle.scores(), null, middle.activationNorms(),
                    middle.gradientNorms()));
            PassOptions options = PassOptions.sparse(new MlpSparsity(two.config(), two.neurons(), layers));
            PassShape shape = new PassShape(f.shape().tokens(), SparseFixture.POSITIONS, training);
            MemoryPlan plan = plan(f, shape, options);
            assertThat(plan.entries().stream().filter(e -> e.name().contains("relu mask")).mapToLong(MemoryPlan.Entry::bytes)
                    .sum()).isEqualTo((long) shape.capacity() * blocks * SparseFixture.BLOCK / 8);
            ModelPass open = f.model.openPass(f.arena, f.adapter, shape, options);
            if (training || pass == Pass.BOTH) {
                assertThat(f.loss(open, Mode.SPARSE, null)).isEqualTo(f.loss(f.open(options.sparsity()), Mode.SPARSE, null));
            }
        }
    }

    @Test
    void aPassAllocatesWhatItsPlanSays() throws IOException {
        try (SparseFixture f = new SparseFixture(folder, new FakeBackend(), true)) {
            for (Pass pass : Pass.values()) {
                for (SelectionPolicy policy : List.of(SelectionPolicy.PREDICTED, SelectionPolicy.ORACLE,
                        SelectionPolicy.RANDOM, SelectionPolicy.SEED)) {
                    PassOptions options = PassOptions
                            .sparse(f.sparsity(SparseFixture.config(policy, pass, 1, 0.4, 0)));
                    MemoryPlan plan = new MemoryPlan();
                    f.model.planPass(plan, f.adapter, f.shape(), options);
                    long before = ((FakeBackend) f.backend).allocatedBytes();
                    f.model.openPass(f.arena, f.adapter, f.shape(), options);
                    assertThat(((FakeBackend) f.backend).allocatedBytes() - before).as(policy + " " + pass)
                            .isEqualTo(plan.deviceBytes());
                }
            }
        }
    }

    /** The backward pass writes over the head's input, and a batch that is only loaded has none. */
    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void lossesGradientsAndLogitsNeedAForwardPassOfTheirOwn(boolean preNorm) throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), preNorm)) {
            Tensor scalar = f.backend.allocate(f.arena, DType.F32, Shape.of(1));
            Tensor grad = f.backend.allocate(f.arena, DType.F32, f.adapter.parameters().shape());
            Tensor logits = f.backend.allocate(f.arena, DType.F32, Shape.of(1, f.model.vocabSize()));
            ModelPass pass = f.open(null);
            List<ThrowingCallable> calls = List.of(() -> pass.addLoss(scalar),
                    () -> pass.addLossAndGradients(scalar, scalar, grad), () -> pass.logits(logits));
            pass.load(f.batch(), null);
            for (ThrowingCallable call : calls) {
                assertThatThrownBy(call).isInstanceOf(IllegalStateException.class)
                        .hasMessageStartingWith("expected a forward pass of the loaded batch");
            }
            pass.forward();
            pass.addLoss(scalar);
            pass.logits(logits);
            pass.addLossAndGradients(scalar, scalar, grad);
            for (ThrowingCallable call : calls) {
                assertThatThrownBy(call).isInstanceOf(IllegalStateException.class)
                        .hasMessageStartingWith("expected a forward pass of the loaded batch");
            }
        }
    }

    @Test
    void whatAPassWasNotOpenedForIsRefused() throws IOException {
        try (SparseFixture f = new SparseFixture(folder, backend("cpu"), true)) {
            assertThatThrownBy(() -> f.open(null).forward()).isInstanceOf(IllegalStateException.class)
                    .hasMessage("expected a loaded batch, found none");
            ModelPass small = f.model.openPass(f.arena, null, new PassShape(5, 3, false));
            assertThatThrownBy(() -> small.load(Batch.of(new Sample(new int[6], new boolean[6])), null))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("expected 1 to 5 tokens in a batch, found 6");
            assertThatThrownBy(() -> small.load(Batch.of(new Sample(new int[4], new boolean[4])), null))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("expected samples of at most 3 tokens, as the pass was opened for, found one of 4");
            assertThatThrownBy(() -> f.open(null).load(f.batch(), null, Mode.SPARSE))
                    .isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("expected a pass that was opened to choose blocks");
            SparsityConfig config = new SparsityConfig(SelectionPolicy.ORACLE, Pass.BOTH, 0.5, 1, 32, 0, 0, 0, false);
            ModelPass pass = f.open(f.sparsity(config));
            pass.load(f.batch(), null, Mode.SPARSE);
            assertThatThrownBy(pass::sense).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("expected a pass opened to sense its coverage");
            assertThatThrownBy(() -> pass.blockChoice().coverage()).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("senseEvery=0");
            assertThatThrownBy(() -> SparsityPlanner.plan(f.model,
                    SparseFixture.config(SelectionPolicy.PREDICTED, Pass.BOTH, 0.9, 1, 0), null))
                    .hasMessageContaining("expected a calibration for predicted blocks, found none");
            assertThatThrownBy(() -> SparsityPlanner.plan(f.model,
                    new SparsityConfig(SelectionPolicy.ORACLE, Pass.BOTH, 0.9, 1, 128, 0, 0, 0, false), null))
                    .hasMessageContaining("expected a block size that divides the 160 neurons");
        }
    }

    @Test
    void onlyLayersWithABackwardPassChooseForIt() throws IOException {
        try (SparseFixture f = new SparseFixture(folder, new FakeBackend(), true)) {
            PassOptions options = PassOptions
                    .sparse(f.sparsity(SparseFixture.config(SelectionPolicy.ORACLE, Pass.BACKWARD, 1, 0.4, 0)));
            ModelPass training = f.model.openPass(f.arena, f.adapter, f.shape(), options);
            ModelPass reading = f.model.openPass(f.arena, f.adapter, new PassShape(64, SparseFixture.POSITIONS, false),
                    options);
            for (int i = 0; i < 3; i++) {
                assertThat(training.blockChoice().isSparse(i)).isTrue();
                assertThat(reading.blockChoice().isSparse(i)).isFalse();
            }
        }
    }
}
