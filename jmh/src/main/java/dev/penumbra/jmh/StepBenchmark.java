package dev.penumbra.jmh;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.model.PassOptions;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.tensor.DType;
import dev.penumbra.train.StepMetrics;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * Whole steps of the trainer: full rows, every token supervised. JMH's score is that of a short run, with what a run
 * allocates; the metered time is that of a step within it, as the trainer tells it.
 */
@BenchmarkMode(Mode.SingleShotTime)
@Warmup(iterations = 0)
@Measurement(iterations = 3)
public class StepBenchmark extends BenchmarkSizes {

    /** Steps of a run before those that are metered: the first ones prepare kernels and touch memory. */
    private static final int WARMUP = 1;
    private static final int METERED = 3;

    @Param({"BF16", "F32"})
    public DType dtype;

    private Penumbra penumbra;
    private Path data;

    @Setup
    public void open() throws IOException {
        data = RandomOpt.tokens(shape, batch, seqLen);
        penumbra = Penumbra.load(RandomOpt.folder(shape, ModelShape.positions(seqLen)), new Device(device, 0), threads,
                dtype);
    }

    @TearDown
    public void close() {
        penumbra.close();
    }

    @Benchmark
    public List<StepMetrics> steps() throws IOException {
        List<StepMetrics> steps = new ArrayList<>();
        TrainingRun.trainer(penumbra, data, LossOn.ALL, batch, seqLen, WARMUP + METERED, false, PassOptions.AUTOMATIC,
                SparsityConfig.OFF, AttentionConfig.OFF).listener(steps::add).run();
        steps.subList(WARMUP, steps.size())
                .forEach(step -> Meter.add(step.stepMs(), shape.stepFlops(batch, seqLen), 0));
        return steps;
    }
}
