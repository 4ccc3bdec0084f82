package dev.penumbra.jmh;

import dev.penumbra.backend.Device;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.Warmup;

/** What every benchmark may be asked for: where it runs, and the sizes of the model and of the batch. */
@State(Scope.Benchmark)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MILLISECONDS)
@Fork(1)
@Warmup(iterations = 2, time = 400, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 5, time = 400, timeUnit = TimeUnit.MILLISECONDS)
public abstract class BenchmarkSizes {

    /** Rank of the adapters, as in the runs beside PEFT. */
    static final int RANK = 4;

    @Param("CPU")
    public Device.Kind device;
    /** 0: as many as there are processors. */
    @Param("0")
    public int threads;
    @Param("OPT_125M")
    public ModelShape shape;
    @Param("2")
    public int batch;
    @Param("512")
    public int seqLen;

    final int tokens() {
        return batch * seqLen;
    }
}
