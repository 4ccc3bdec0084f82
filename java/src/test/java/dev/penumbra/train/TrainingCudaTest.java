package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.DemoModel;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.SplittableRandom;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Whole runs on a GPU, with the bundled checkpoint. */
@NeedsGpu
class TrainingCudaTest {

    private static final long MIB = 1 << 20;

    @TempDir
    static Path folder;

    @BeforeAll
    static void extract() throws IOException {
        DemoModel.extract(folder);
    }

    static Dataset data() {
        SplittableRandom random = new SplittableRandom(11);
        List<Sample> samples = new ArrayList<>();
        for (int s = 0; s < 400; s++) {
            int[] ids = random.ints(random.nextInt(8, 120), 4, 4000).toArray();
            boolean[] supervised = new boolean[ids.length];
            Arrays.fill(supervised, random.nextInt(1, 7), ids.length, true);
            samples.add(new Sample(ids, supervised));
        }
        return Dataset.of(samples);
    }

    private record Result(List<Double> losses, float[] parameters) {
    }

    private static Result train(Device device, DType dtype, double dropout, int steps) throws IOException {
        try (Penumbra penumbra = Penumbra.load(folder, device, 0, dtype)) {
            LoraConfig lora = new LoraConfig(8, 16, dropout, Set.copyOf(LoraConfig.OPT_TARGETS), false);
            LoraAdapter adapter = penumbra.newAdapter(lora, 3);
            TrainConfig config = TrainConfig.builder().steps(steps).batchSize(4).seqLen(256).lr(1e-3).seed(5).build();
            List<Double> losses = new ArrayList<>();
            new Trainer(penumbra.model(), adapter, config, data(), null).listener(m -> losses.add(m.loss())).run();
            return new Result(losses, adapter.parametersToHost());
        }
    }

    @ParameterizedTest
    @CsvSource({"F32,1e-4", "BF16,5e-3"})
    void aHundredStepsHaveTheLossesOfTheCpu(DType dtype, double tolerance) throws IOException {
        List<Double> cpu = train(Device.CPU, dtype, 0.1, 100).losses();
        List<Double> cuda = train(Device.cuda(0), dtype, 0.1, 100).losses();
        double worst = 0;
        for (int i = 0; i < 100; i++) {
            worst = Math.max(worst, Math.abs(cuda.get(i) / cpu.get(i) - 1));
        }
        System.out.printf("%s: loss %.4f to %.4f, worst of 100 losses %.1e from the CPU's%n", dtype, cuda.getFirst(),
                cuda.getLast(), worst);
        assertThat(cuda).hasSize(100);
        assertThat(worst).isLessThan(tolerance);
        assertThat(cuda.getLast()).isLessThan(cuda.getFirst());
    }

    @Test
    void equalRunsGiveEqualBits() throws IOException {
        Result first = train(Device.cuda(0), DType.BF16, 0.1, 20);
        Result second = train(Device.cuda(0), DType.BF16, 0.1, 20);
        assertThat(second.losses()).isEqualTo(first.losses());
        assertThat(second.parameters()).isEqualTo(first.parameters());
    }

    @Test
    void whatIsTakenIsWhatWasPlanned() throws IOException {
        try (Backend observer = Backends.open(Device.cuda(0), 0, true)) {
            long before = observer.freeBytes().orElseThrow();
            try (Penumbra penumbra = Penumbra.load(folder, Device.cuda(0), 0, DType.BF16)) {
                LoraAdapter adapter = penumbra.newAdapter(LoraConfig.ofRank(8), 3);
                TrainConfig config = TrainConfig.builder().steps(4).batchSize(16).seqLen(512).build();
                Trainer trainer = new Trainer(penumbra.model(), adapter, config, data(), null);
                long planned = trainer.plan().totalBytes();
                long[] taken = new long[1];
                trainer.listener(m -> taken[0] = before - observer.freeBytes().orElseThrow()).run();
                System.out.printf("planned %.1f MiB, taken %.1f MiB%n", planned / (double) MIB, taken[0] / (double) MIB);
                assertThat((double) taken[0]).isBetween(0.95 * planned, 1.05 * planned + 64 * MIB);
            }
        }
    }
}
