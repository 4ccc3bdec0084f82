package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/** Whole runs, over samples of some hundred tokens, whose heads attend to some blocks of keys only. */
class AttentionTrainingTest {

    @TempDir
    Path folder;

    private SparseFixture fixture(Backend backend) throws IOException {
        return AttentionFixture.openToTrain(folder.resolve("model"), backend);
    }

    private static Backend cpu() {
        return Backends.open(Device.CPU, 1, true);
    }

    private static AttentionConfig attention(AttentionPolicy policy, Pass pass) {
        return new AttentionConfig(policy, pass, policy.takesCoverage() ? 0.95 : 1, policy.takesBudget() ? 0.7 : 1,
                AttentionFixture.BLOCK, 0.2, 3, false);
    }

    private static TrainConfig.Builder config(AttentionConfig attention) {
        return TrainConfig.builder().steps(10).batchSize(2).seqLen(AttentionFixture.POSITIONS).lr(1e-3).seed(7).gradAccum(2)
                .attention(attention);
    }

    private static List<StepMetrics> train(SparseFixture f, TrainConfig config, int cancelAfter) {
        List<StepMetrics> steps = new ArrayList<>();
        Trainer trainer = new Trainer(f.model, f.adapter, config, f.data, null)
                .attentionExposure(AttentionFixture.found(f.model));
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

    @ParameterizedTest
    @EnumSource(AttentionPolicy.class)
    void everyPolicyTrainsAndTellsWhatItKept(AttentionPolicy policy) throws IOException {
        List<Double> dense;
        try (SparseFixture f = fixture(cpu())) {
            dense = losses(train(f, config(AttentionConfig.OFF).build(), -1));
        }
        for (Pass pass : Pass.values()) {
            try (SparseFixture f = fixture(cpu())) {
                List<StepMetrics> steps = train(f, config(attention(policy, pass)).build(), -1);
                assertThat(steps).hasSize(10);
                for (StepMetrics step : steps) {
                    assertThat(step.sparsity()).isNull();
                    StepSparsity told = step.attention();
                    if (step.step() <= 2 || policy.isDense()) {
                        assertThat(told).isNull();
                        continue;
                    }
                    assertThat(told.kept()).hasSize(2)
                            .allSatisfy(kept -> assertThat(kept).isBetween(0.4, policy == AttentionPolicy.ALL ? 1 : 0.78));
                    assertThat(told.meanCovered()).isBetween(0.3, 1.00001);
                    boolean senses = step.step() % 3 == 0;
                    assertThat(told.trueCoverage()).hasSize(senses ? 2 : 0);
                    if (senses) {
                        assertThat(told.meanTrueCoverage().orElseThrow()).isBetween(0.5, 1.00001);
                    }
                    if (senses && policy == AttentionPolicy.ORACLE) {
                        assertThat(told.meanTrueCoverage().orElseThrow()).isCloseTo(told.meanCovered(), within(0.02));
                    }
                }
                double last = steps.getLast().loss();
                System.out.printf("%s %s: loss %.4f, dense %.4f, first %.4f%n", policy, pass, last, dense.getLast(),
                        dense.getFirst());
                // Random weights attend to everything about equally: leaving out a third is noticed, and learnt under.
                assertThat(last).isCloseTo(dense.getLast(), within(0.1 * dense.getLast()));
                assertThat(last).isLessThan(dense.getFirst());
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"RANDOM, 0.6, false", "PREDICTED, 1, true", "ORACLE, 1, false"})
    void aResumedRunContinuesToTheLossesOfAnUninterruptedOne(AttentionPolicy policy, double budget, boolean adjust)
            throws IOException {
        // Predictions of random numbers miss their coverage, and the run asks for more as it finds out.
        AttentionConfig attention = new AttentionConfig(policy, Pass.BOTH, 0.7, budget, AttentionFixture.BLOCK, 0, 2,
                adjust);
        List<Double> whole;
        try (SparseFixture f = fixture(cpu())) {
            List<StepMetrics> steps = train(f, config(attention).output(folder.resolve("whole")).build(), -1);
            whole = losses(steps);
            if (adjust) {
                assertThat(steps.getLast().attention().meanCovered())
                        .isNotCloseTo(steps.getFirst().attention().meanCovered(), within(0.02));
            }
        }
        List<Double> parts;
        try (SparseFixture f = fixture(cpu())) {
            parts = new ArrayList<>(losses(train(f, config(attention).output(folder.resolve("parts")).build(), 5)));
            assertThat(parts).hasSize(5);
        }
        try (SparseFixture f = fixture(cpu())) {
            parts.addAll(losses(train(f, config(attention).output(folder.resolve("parts")).resume(true).build(), -1)));
        }
        assertThat(parts).isEqualTo(whole);
        assertThat(Files.readAllBytes(folder.resolve("parts/adapter_model.safetensors")))
                .isEqualTo(Files.readAllBytes(folder.resolve("whole/adapter_model.safetensors")));
    }

    @Test
    void aResumedRunWithOtherAttentionIsRefused() throws IOException {
        try (SparseFixture f = fixture(cpu())) {
            train(f, config(attention(AttentionPolicy.ORACLE, Pass.BACKWARD)).output(folder.resolve("o")).build(), 3);
            assertThatThrownBy(() -> train(f,
                    config(attention(AttentionPolicy.LONGFORMER, Pass.BACKWARD)).output(folder.resolve("o")).resume(true)
                            .build(),
                    -1)).isInstanceOf(TrainingException.class).hasMessageContaining("attention=longformer pass=backward")
                    .hasMessageContaining("attention=oracle pass=backward").hasMessageNotContaining("lr=");
            assertThat(Files.readString(folder.resolve("o/checkpoint-3/state.json")))
                    .contains("attention_calibration=found");
        }
    }

    /** MLPs too; what is recorded for one batch serves the others of its sizes, and no step allocates. */
    @ParameterizedTest
    @CsvSource({"ORACLE, BACKWARD", "PREDICTED, BOTH"})
    void aDeviceThatComputesBehindTheHostGivesTheSameLosses(AttentionPolicy policy, Pass pass) throws IOException {
        List<List<StepMetrics>> runs = new ArrayList<>();
        SparsityConfig neurons = new SparsityConfig(SelectionPolicy.ORACLE, pass, 1, 0.6, SparseFixture.BLOCK, 0, 0.3, 2,
                false);
        AttentionConfig keys = new AttentionConfig(policy, pass, 0.9, 0.8, AttentionFixture.BLOCK, 0.3, 2, false);
        for (boolean asynchronous : new boolean[]{false, true}) {
            FakeBackend fake = new FakeBackend(asynchronous);
            try (SparseFixture f = fixture(fake)) {
                long[] after = new long[1];
                runs.add(new ArrayList<>());
                new Trainer(f.model, f.adapter, config(keys).sparsity(neurons).gradAccum(1).steps(3).build(), f.data, null)
                        .attentionExposure(AttentionFixture.found(f.model)).listener(step -> {
                            runs.getLast().add(step);
                            if (step.step() == 1) {
                                after[0] = fake.allocatedBytes();
                            }
                            assertThat(fake.allocatedBytes()).as("bytes allocated within step " + step.step())
                                    .isEqualTo(after[0]);
                        }).run();
                assertThat(fake.pendingReads()).isZero();
                // One dense step, two sparse ones in two layers.
                assertThat(fake.operations().stream().filter(SelectAttention.class::isInstance)).hasSize(2 * 2);
            }
        }
        for (int i = 0; i < 3; i++) {
            StepMetrics atOnce = runs.getFirst().get(i);
            StepMetrics behind = runs.getLast().get(i);
            assertThat(behind.loss()).isCloseTo(atOnce.loss(), within(2e-5));
            assertThat(behind.attention() == null).isEqualTo(atOnce.attention() == null);
            if (atOnce.attention() != null) {
                // A device asks fewer queries.
                assertThat(behind.attention().meanKept()).isCloseTo(atOnce.attention().meanKept(), within(0.05));
                assertThat(behind.sparsity().kept()).isEqualTo(atOnce.sparsity().kept());
            }
        }
    }

    @Test
    void evaluationsAreDense() throws IOException {
        List<Double> evaluated = new ArrayList<>();
        try (SparseFixture f = fixture(cpu())) {
            double dense = Evaluator.loss(f.model, f.adapter, f.data, 2, AttentionFixture.POSITIONS);
            AttentionConfig random = new AttentionConfig(AttentionPolicy.RANDOM, Pass.BOTH, 1, 0.2, AttentionFixture.BLOCK,
                    0,
                    0, false);
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
