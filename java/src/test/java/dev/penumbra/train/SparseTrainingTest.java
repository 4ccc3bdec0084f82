package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/** Whole runs that compute only some blocks of their MLPs' neurons. */
class SparseTrainingTest {

    @TempDir
    Path folder;

    private SparseFixture fixture(Backend backend) throws IOException {
        return new SparseFixture(folder.resolve("model"), backend, true);
    }

    private static Backend cpu() {
        return Backends.open(Device.CPU, 1, true);
    }

    private static SparsityConfig sparsity(SelectionPolicy policy, Pass pass) {
        return new SparsityConfig(policy, pass, 0.95, 0.6, SparseFixture.BLOCK, 0, 0.2, 3, false);
    }

    private static TrainConfig.Builder config(SparsityConfig sparsity) {
        return TrainConfig.builder().steps(10).batchSize(2).seqLen(SparseFixture.POSITIONS).lr(1e-3).seed(7).gradAccum(2)
                .sparsity(sparsity);
    }

    private static List<StepMetrics> train(SparseFixture f, TrainConfig config, int cancelAfter) {
        List<StepMetrics> steps = new ArrayList<>();
        Trainer trainer = new Trainer(f.model, f.adapter, config, f.data, null);
        trainer.listener(step -> {
            steps.add(step);
            if (step.step() == cancelAfter) {
                trainer.cancel();
            }
        }).run();
        return steps;
    }

    private static List<Double> losses(List<StepMetrics> steps) {
        return steps.stream().map(StepMetrics::loss).toList();
    }

    @Test
    void theFirstStepsAreDenseAndLaterOnesTellWhatTheyKeptAndNowAndThenTheTruth() throws IOException {
        for (Pass pass : Pass.values()) {
            try (SparseFixture f = fixture(cpu())) {
                List<StepMetrics> steps = train(f, config(sparsity(SelectionPolicy.ORACLE, pass)).build(), -1);
                for (StepMetrics step : steps) {
                    StepSparsity told = step.sparsity();
                    if (step.step() <= 2) {
                        assertThat(told).isNull();
                        continue;
                    }
                    assertThat(told.kept()).hasSize(3).allSatisfy(kept -> assertThat(kept).isCloseTo(0.6, within(1e-6)));
                    assertThat(told.meanCovered()).isBetween(0.6, 0.95);
                    assertThat(told.cut()).containsExactly(1.0, 1.0, 1.0);
                    boolean senses = step.step() % 3 == 0;
                    assertThat(told.trueCoverage()).hasSize(senses ? 3 : 0);
                    if (senses && pass == Pass.BACKWARD) {
                        // The forward pass is exact, and so is what the lists were chosen by.
                        for (int i = 0; i < 3; i++) {
                            assertThat(told.trueCoverage().get(i)).isCloseTo(told.covered().get(i), within(1e-5));
                        }
                    }
                }
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"STATIC, true", "RANDOM, false", "EXACT, true"})
    void stepsBeforeTheListsAreThoseOfADenseRun(SelectionPolicy policy, boolean preNorm) throws IOException {
        List<List<Double>> losses = new ArrayList<>();
        SparsityConfig half = new SparsityConfig(policy, Pass.BOTH, 1, 0.2, SparseFixture.BLOCK, 0, 0.5, 3, false);
        for (SparsityConfig sparsity : List.of(SparsityConfig.OFF, half)) {
            try (SparseFixture f = new SparseFixture(folder.resolve("model"), cpu(), preNorm)) {
                losses.add(losses(train(f, config(sparsity).lr(1e-2).build(), -1)));
            }
        }
        for (int step = 0; step < 5; step++) {
            double dense = losses.getFirst().get(step);
            assertThat(losses.getLast().get(step)).as("step " + step).isCloseTo(dense, within(1e-5 * dense));
        }
        assertThat(losses.getLast().getLast()).isNotCloseTo(losses.getFirst().getLast(), within(1e-5));
    }

    @ParameterizedTest
    @EnumSource(value = SelectionPolicy.class, names = {"RANDOM", "STATIC", "SEED"})
    void aResumedRunContinuesToTheLossesOfAnUninterruptedOne(SelectionPolicy policy) throws IOException {
        // Static lists by weights alone miss their coverage, and the run asks for more as it finds out.
        SparsityConfig sparsity = new SparsityConfig(policy, Pass.BOTH, policy.takesCoverage() ? 0.7 : 1,
                policy == SelectionPolicy.RANDOM ? 0.5 : 1,
                SparseFixture.BLOCK, 0, 0, 2, policy == SelectionPolicy.STATIC);
        List<Double> whole;
        try (SparseFixture f = fixture(cpu())) {
            List<StepMetrics> steps = train(f, config(sparsity).output(folder.resolve("whole")).build(), -1);
            whole = losses(steps);
            if (policy == SelectionPolicy.STATIC) {
                assertThat(steps.getLast().sparsity().meanKept()).isNotEqualTo(steps.getFirst().sparsity().meanKept());
            }
        }
        List<Double> parts;
        try (SparseFixture f = fixture(cpu())) {
            parts = new ArrayList<>(losses(train(f, config(sparsity).output(folder.resolve("parts")).build(), 5)));
            assertThat(parts).hasSize(5);
        }
        try (SparseFixture f = fixture(cpu())) {
            parts.addAll(losses(train(f, config(sparsity).output(folder.resolve("parts")).resume(true).build(), -1)));
        }
        assertThat(parts).isEqualTo(whole);
        assertThat(Files.readAllBytes(folder.resolve("parts/adapter_model.safetensors")))
                .isEqualTo(Files.readAllBytes(folder.resolve("whole/adapter_model.safetensors")));
    }

    @Test
    void aResumedRunWithOtherSparsityIsRefused() throws IOException {
        try (SparseFixture f = fixture(cpu())) {
            train(f, config(sparsity(SelectionPolicy.ORACLE, Pass.BACKWARD)).output(folder.resolve("o")).build(), 4);
            assertThatThrownBy(
                    () -> train(f, config(SparsityConfig.OFF).output(folder.resolve("o")).resume(true).build(), -1))
                    .isInstanceOf(TrainingException.class).hasMessageContaining("sparsity=off")
                    .hasMessageContaining("sparsity=oracle pass=backward");
        }
    }

    @ParameterizedTest
    @CsvSource({"ORACLE, BACKWARD", "RANDOM, BOTH"})
    void aDeviceThatComputesBehindTheHostGivesTheSameLosses(SelectionPolicy policy, Pass pass) throws IOException {
        List<List<StepMetrics>> runs = new ArrayList<>();
        for (boolean asynchronous : new boolean[]{false, true}) {
            FakeBackend fake = new FakeBackend(asynchronous);
            try (SparseFixture f = fixture(fake)) {
                long[] after = new long[1];
                runs.add(new ArrayList<>());
                new Trainer(f.model, f.adapter, config(sparsity(policy, pass)).steps(6).build(), f.data, null)
                        .listener(step -> {
                            runs.getLast().add(step);
                            if (step.step() == 1) {
                                after[0] = fake.allocatedBytes();
                            }
                            assertThat(fake.allocatedBytes()).as("bytes allocated within step " + step.step())
                                    .isEqualTo(after[0]);
                        }).run();
                assertThat(fake.pendingReads()).isZero();
                // One dense step, five sparse ones of two micro-batches in three layers.
                assertThat(fake.operations().stream().filter(SelectBlocks.class::isInstance)).hasSize(5 * 2 * 3);
            }
        }
        for (int i = 0; i < 6; i++) {
            StepMetrics atOnce = runs.getFirst().get(i);
            StepMetrics behind = runs.getLast().get(i);
            // Batches are rounded up where operations are recorded, which moves sums by a rounding.
            assertThat(behind.loss()).isCloseTo(atOnce.loss(), within(1e-5));
            assertThat(behind.sparsity() == null).isEqualTo(atOnce.sparsity() == null);
            if (atOnce.sparsity() != null) {
                assertThat(behind.sparsity().kept()).isEqualTo(atOnce.sparsity().kept());
            }
        }
    }

    private static List<NeuronOrder> shuffled(int layers, long seed) {
        List<NeuronOrder> orders = new ArrayList<>();
        Random random = new Random(seed);
        for (int i = 0; i < layers; i++) {
            List<Integer> order = new ArrayList<>(
                    IntStream.range(0, SparseFixture.BLOCK * SparseFixture.BLOCKS).boxed().toList());
            Collections.shuffle(order, random);
            orders.add(new NeuronOrder(order.stream().mapToInt(Integer::intValue).toArray()));
        }
        return orders;
    }

    @ParameterizedTest
    @CsvSource({"true", "false"})
    void anAdapterTunedUnderAnOrderIsTheSameWithoutOne(boolean preNorm) throws IOException {
        List<NeuronOrder> orders = shuffled(3, 99);
        Path output = folder.resolve("adapter");
        int[] ids = {4, 9, 33, 7, 12, 21, 2};
        float[] expected;
        List<Double> ordered;
        try (SparseFixture f = new SparseFixture(folder.resolve("model"), cpu(), preNorm, 3, SparseFixture.ALL, n -> false,
                orders)) {
            ordered = losses(train(f, config(sparsity(SelectionPolicy.ORACLE, Pass.BACKWARD)).output(output).saveEvery(5)
                    .build(), -1));
            expected = f.model.openCache(f.arena, f.adapter, ids.length).feed(ids);
        }
        try (SparseFixture f = new SparseFixture(folder.resolve("model"), cpu(), preNorm);
                PeftAdapter saved = PeftAdapter.read(output);
                PeftAdapter checkpoint = PeftAdapter.read(output.resolve("checkpoint-10"));
                Arena arena = Arena.ofShared()) {
            float[] plain = f.model.openCache(f.arena, f.adapter, ids.length).feed(ids);
            for (PeftAdapter files : List.of(saved, checkpoint)) {
                LoraAdapter adapter = LoraAdapter.of(f.backend, arena, files.config(), f.model.adaptableLayers(),
                        f.model.peftPrefix(), files.tensors());
                float[] found = f.model.openCache(arena, adapter, ids.length).feed(ids);
                assertThat(PeftFixture.relativeError(found, expected)).isLessThan(1e-5);
                assertThat(PeftFixture.relativeError(found, plain)).isGreaterThan(1e-4);
            }
        }
        assertThat(ordered).hasSize(10);
    }

    @Test
    void anOrderChangesNoDenseResult() throws IOException {
        for (boolean preNorm : new boolean[]{true, false}) {
            SparseFixture.Result plain;
            try (SparseFixture f = new SparseFixture(folder.resolve("" + preNorm), cpu(), preNorm)) {
                plain = f.dense();
                // The fixture's adapter, as files have it.
                PeftAdapter.write(folder.resolve("given"), f.adapter.config(), "model", f.adapter.toHost(f.arena));
                try (SparseFixture other = new SparseFixture(folder.resolve("" + preNorm), cpu(), preNorm, 3,
                        SparseFixture.ALL,
                        n -> false, shuffled(3, 5)); PeftAdapter given = PeftAdapter.read(folder.resolve("given"))) {
                    other.adapter.load(given.tensors());
                    float[] gradient = other.dense().gradient();
                    assertThat(other.dense().loss()).isCloseTo(plain.loss(), within(1e-6 * plain.loss()));
                    assertThat(Arrays.equals(gradient, plain.gradient())).as("in the order of the places").isFalse();
                    other.adapter.setParameters(gradient);
                    f.adapter.setParameters(plain.gradient());
                    var found = other.adapter.toHost(other.arena);
                    f.adapter.toHost(f.arena).forEach((key, matrix) -> assertThat(
                            PeftFixture.relativeError(found.get(key).toFloats(), matrix.toFloats())).as(key)
                            .isLessThan(1e-5));
                    for (int i = 0; i < 3; i++) {
                        assertThat(other.model.neuronNorms(i).fc2())
                                .isEqualTo(other.model.neuronOrder(i).apply(f.model.neuronNorms(i).fc2()));
                        assertThat(other.model.neuronNorms(i).fc1())
                                .isEqualTo(other.model.neuronOrder(i).apply(f.model.neuronNorms(i).fc1()));
                    }
                }
            }
        }
    }

    @Test
    void evaluationsAreDense() throws IOException {
        List<Double> evaluated = new ArrayList<>();
        try (SparseFixture f = fixture(cpu())) {
            double dense = Evaluator.loss(f.model, f.adapter, f.data, 2, SparseFixture.POSITIONS);
            SparsityConfig random = new SparsityConfig(SelectionPolicy.RANDOM, Pass.BOTH, 1, 0.2, SparseFixture.BLOCK, 0, 0,
                    0,
                    false);
            new Trainer(f.model, f.adapter, config(random).steps(1).lr(0).build(), f.data, f.data)
                    .listener(new StepListener() {
                        @Override
                        public void onStep(StepMetrics metrics) {
                            // the evaluation after it is looked at
                        }

                        @Override
                        public void onEval(int step, double loss) {
                            evaluated.add(loss);
                        }
                    }).run();
            assertThat(evaluated).hasSize(1);
            assertThat(evaluated.getFirst()).isCloseTo(dense, within(1e-6 * dense));
        }
    }
}
