package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.DemoModel;
import dev.penumbra.Penumbra;
import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Sparse runs on a GPU, recorded as graphs, with the bundled checkpoint. */
@NeedsGpu
class SparseTrainingCudaTest {

    private static final long MIB = 1 << 20;
    private static final int STEPS = 40;

    @TempDir
    static Path folder;

    @BeforeAll
    static void extract() throws IOException {
        DemoModel.extract(folder);
    }

    private record Result(List<StepMetrics> steps, float[] parameters) {
    }

    private static Result train(Device device, DType dtype, SparsityConfig sparsity, double dropout) throws IOException {
        try (Penumbra penumbra = Penumbra.load(folder, device, 0, dtype)) {
            LoraConfig lora = new LoraConfig(8, 16, dropout, Set.copyOf(LoraConfig.OPT_TARGETS), false);
            LoraAdapter adapter = penumbra.newAdapter(lora, 3);
            TrainConfig config = TrainConfig.builder().steps(STEPS).batchSize(4).seqLen(256).lr(1e-3).seed(5)
                    .sparsity(sparsity).build();
            List<StepMetrics> steps = new ArrayList<>();
            new Trainer(penumbra.model(), adapter, config, TrainingCudaTest.data(), null).listener(steps::add).run();
            return new Result(steps, adapter.parametersToHost());
        }
    }

    /** Where lists do not hang on rounding they are the CPU's; where they do, a block near the border may be another. */
    @ParameterizedTest
    @CsvSource({"ALL, BOTH, 128, 0, F32, 2e-4", "STATIC, BOTH, 128, 0, F32, 2e-4", "RANDOM, BOTH, 64, 256, F32, 2e-4",
            "RANDOM, BACKWARD, 32, 0, F32, 2e-4", "EXACT, BOTH, 32, 0, F32, 1e-2", "ORACLE, BOTH, 32, 256, F32, 1e-2",
            "ORACLE, BACKWARD, 128, 0, F32, 1e-2", "ORACLE, BACKWARD, 32, 256, F32, 1e-2", "SEED, BOTH, 32, 0, F32, 1e-2",
            "STATIC, BOTH, 32, 0, BF16, 1e-2", "ORACLE, BACKWARD, 32, 256, BF16, 2e-2"})
    void stepsHaveTheLossesOfTheCpu(SelectionPolicy policy, Pass pass, int block, int rows, DType dtype, double tolerance)
            throws IOException {
        SparsityConfig sparsity = new SparsityConfig(policy, pass, 1, policy.takesBudget() ? 0.5 : 1, block, rows, 0.2, 8,
                false);
        List<StepMetrics> cpu = train(Device.CPU, dtype, sparsity, 0.1).steps();
        List<StepMetrics> cuda = train(Device.cuda(0), dtype, sparsity, 0.1).steps();
        double worst = 0;
        double kept = 0;
        for (int i = 0; i < STEPS; i++) {
            worst = Math.max(worst, Math.abs(cuda.get(i).loss() / cpu.get(i).loss() - 1));
            if (cpu.get(i).sparsity() != null) {
                kept = Math.max(kept, Math.abs(cuda.get(i).sparsity().meanCovered() - cpu.get(i).sparsity().meanCovered()));
            }
        }
        System.out.printf("%s %s: worst of %d losses %.1e, of covered shares %.1e from the CPU's%n", sparsity.describe(),
                dtype,
                STEPS, worst, kept);
        assertThat(worst).isLessThan(tolerance);
        assertThat(kept).isLessThan(0.02);
    }

    @ParameterizedTest
    @CsvSource({"ORACLE, BACKWARD", "RANDOM, BOTH"})
    void equalRunsGiveEqualBits(SelectionPolicy policy, Pass pass) throws IOException {
        SparsityConfig sparsity = new SparsityConfig(policy, pass, 1, 0.3, 32, 256, 0.1, 8, false);
        Result first = train(Device.cuda(0), DType.BF16, sparsity, 0.1);
        Result second = train(Device.cuda(0), DType.BF16, sparsity, 0.1);
        assertThat(second.steps().stream().map(StepMetrics::loss).toList())
                .isEqualTo(first.steps().stream().map(StepMetrics::loss).toList());
        assertThat(second.parameters()).isEqualTo(first.parameters());
    }

    @Test
    void whatIsTakenIsWhatWasPlannedAndLessThanADenseRun() throws IOException {
        SparsityConfig sparse = new SparsityConfig(SelectionPolicy.STATIC, Pass.BOTH, 1, 0.25, 128, 0, 0.25, 0, false);
        try (Backend observer = Backends.open(Device.cuda(0), 0, true)) {
            long[] planned = new long[2];
            for (int i = 0; i < 2; i++) {
                long before = observer.freeBytes().orElseThrow();
                try (Penumbra penumbra = Penumbra.load(folder, Device.cuda(0), 0, DType.BF16)) {
                    LoraAdapter adapter = penumbra.newAdapter(LoraConfig.ofRank(8), 3);
                    TrainConfig config = TrainConfig.builder().steps(4).batchSize(16).seqLen(512)
                            .sparsity(i == 0 ? SparsityConfig.OFF : sparse).build();
                    Trainer trainer = new Trainer(penumbra.model(), adapter, config, TrainingCudaTest.data(), null);
                    planned[i] = trainer.plan().totalBytes();
                    long[] taken = new long[1];
                    trainer.listener(m -> taken[0] = before - observer.freeBytes().orElseThrow()).run();
                    System.out.printf("planned %.1f MiB, taken %.1f MiB%n", planned[i] / (double) MIB,
                            taken[0] / (double) MIB);
                    assertThat((double) taken[0]).isBetween(0.95 * planned[i], 1.05 * planned[i] + 64 * MIB);
                }
            }
            assertThat(planned[1]).isLessThan(planned[0]);
        }
    }
}
