package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.DemoModel;
import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.Set;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Runs on a GPU whose heads attend by lists, recorded as graphs, with the bundled checkpoint and samples of four blocks. */
@NeedsGpu
class AttentionTrainingCudaTest {

    private static final int STEPS = 16;
    private static final int SEQ_LEN = 512;
    private static final int BLOCK = 128;
    private static final int HEADS = 4;
    private static final int LAYERS = 6;
    private static final int HIDDEN = 256;
    private static final int RANK = 16;

    @TempDir
    static Path folder;

    @BeforeAll
    static void extract() throws IOException {
        DemoModel.extract(folder);
    }

    private static Dataset data() {
        SplittableRandom random = new SplittableRandom(12);
        List<Sample> samples = new ArrayList<>();
        for (int s = 0; s < 80; s++) {
            int[] ids = random.ints(s % 4 == 3 ? random.nextInt(8, 200) : random.nextInt(300, SEQ_LEN + 1), 4, 4000)
                    .toArray();
            boolean[] supervised = new boolean[ids.length];
            Arrays.fill(supervised, 1, ids.length, true);
            samples.add(new Sample(ids, supervised));
        }
        return Dataset.of(samples);
    }

    private record RandomNumbers() implements AttentionExposure {

        @Override
        public int layers() {
            return LAYERS;
        }

        @Override
        public int heads() {
            return HEADS;
        }

        @Override
        public int blockSize() {
            return BLOCK;
        }

        @Override
        public int width() {
            return SEQ_LEN / BLOCK;
        }

        @Override
        public float[] table(int layer) {
            return gaussian(layer, HEADS * width() * width(), 1);
        }

        @Override
        public Optional<AttentionPredictor> predictor(int layer) {
            return Optional.of(new AttentionPredictor(HEADS, RANK, HIDDEN, width(),
                    gaussian(layer, 2 * HEADS * RANK * HIDDEN, 0.05), gaussian(layer + 9, 2 * HEADS * RANK, 0.05),
                    gaussian(layer + 18, HEADS * width(), 0.5), 32, BLOCK));
        }

        private static float[] gaussian(long seed, int count, double scale) {
            Random random = new Random(seed);
            float[] values = new float[count];
            for (int i = 0; i < count; i++) {
                values[i] = (float) Math.abs(scale * random.nextGaussian());
            }
            return values;
        }

        @Override
        public double[] keptAt(int layer, double coverage) {
            return new double[]{0.5 * coverage, 0.7 * coverage, 0.9 * coverage, coverage};
        }

        @Override
        public String identity() {
            return "random";
        }
    }

    private record Result(List<StepMetrics> steps, float[] parameters) {
    }

    private static Result train(Device device, DType dtype, AttentionConfig attention, SparsityConfig mlp)
            throws IOException {
        try (Penumbra penumbra = Penumbra.load(folder, device, 0, dtype)) {
            LoraConfig lora = new LoraConfig(8, 16, 0, Set.copyOf(LoraConfig.OPT_TARGETS), false);
            LoraAdapter adapter = penumbra.newAdapter(lora, 3);
            TrainConfig config = TrainConfig.builder().steps(STEPS).batchSize(2).seqLen(SEQ_LEN).lr(1e-3).seed(5)
                    .attention(attention).sparsity(mlp).build();
            List<StepMetrics> steps = new ArrayList<>();
            new Trainer(penumbra.model(), adapter, config, data(), null).attentionExposure(new RandomNumbers())
                    .listener(steps::add).run();
            return new Result(steps, adapter.parametersToHost());
        }
    }

    /**
     * Where lists do not hang on rounding they are the CPU's; where they do, a block near the border may be another, and of
     * fewer queries a device makes other ones.
     */
    @ParameterizedTest
    @CsvSource({"ALL, BOTH, F32, 2e-4", "STATIC, BOTH, F32, 2e-4", "RANDOM, BACKWARD, F32, 2e-4", "ORACLE, BOTH, F32, 1e-2",
            "STATIC, BOTH, BF16, 1e-2", "BIGBIRD, BOTH, BF16, 1e-2", "LONGFORMER, BACKWARD, BF16, 1e-2",
            "PREDICTED, BOTH, BF16, 2e-2", "PREDICTED, BACKWARD, BF16, 2e-2", "ORACLE, BACKWARD, BF16, 2e-2"})
    void stepsHaveTheLossesOfTheCpu(AttentionPolicy policy, Pass pass, DType dtype, double tolerance) throws IOException {
        AttentionConfig attention = new AttentionConfig(policy, pass, 1, policy.takesBudget() ? 0.8 : 1, BLOCK, 0.2, 4,
                false);
        List<StepMetrics> cpu = train(Device.CPU, dtype, attention, SparsityConfig.OFF).steps();
        List<StepMetrics> cuda = train(Device.cuda(0), dtype, attention, SparsityConfig.OFF).steps();
        double worst = 0;
        double kept = 0;
        for (int i = 0; i < STEPS; i++) {
            worst = Math.max(worst, Math.abs(cuda.get(i).loss() / cpu.get(i).loss() - 1));
            assertThat(cuda.get(i).attention() == null).isEqualTo(cpu.get(i).attention() == null);
            if (cpu.get(i).attention() != null) {
                kept = Math.max(kept, Math.abs(cuda.get(i).attention().meanKept() - cpu.get(i).attention().meanKept()));
            }
        }
        System.out.printf("%s %s: worst of %d losses %.1e, of kept parts %.1e from the CPU's%n", attention.describe(), dtype,
                STEPS, worst, kept);
        assertThat(worst).isLessThan(tolerance);
        assertThat(kept).isLessThan(0.02);
    }

    @Test
    void equalRunsGiveEqualBitsWithSparseMlpsToo() throws IOException {
        for (Pass pass : Pass.values()) {
            AttentionConfig attention = new AttentionConfig(
                    pass == Pass.BOTH ? AttentionPolicy.PREDICTED : AttentionPolicy.ORACLE, pass, 1, 0.8, BLOCK, 0.2, 4,
                    false);
            SparsityConfig mlp = new SparsityConfig(SelectionPolicy.RANDOM, pass, 1, 0.5, 128, 0, 0.2, 4, false);
            Result first = train(Device.cuda(0), DType.BF16, attention, mlp);
            Result second = train(Device.cuda(0), DType.BF16, attention, mlp);
            assertThat(second.steps().stream().map(StepMetrics::loss).toList())
                    .isEqualTo(first.steps().stream().map(StepMetrics::loss).toList());
            assertThat(second.parameters()).isEqualTo(first.parameters());
        }
    }
}
