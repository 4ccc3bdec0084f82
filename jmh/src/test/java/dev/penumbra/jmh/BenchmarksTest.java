package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.Collection;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.VerboseMode;

class BenchmarksTest {

    /** Once, on a model too small to time, in this process: that it runs and says how much it did. */
    @Test
    void everyBenchmarkRunsAndReportsItsWork() throws RunnerException {
        Collection<RunResult> results = BenchmarksCommand.run(new OptionsBuilder()
                .mode(Mode.SingleShotTime).forks(0).warmupIterations(0).measurementIterations(1)
                .verbosity(VerboseMode.SILENT)
                .param("shape", "TINY").param("seqLen", "64").param("sampleLength", "64", "32").build());

        Set<String> ran = new TreeSet<>();
        for (RunResult result : results) {
            String[] name = result.getParams().getBenchmark().split("\\.");
            ran.add(name[name.length - 2]);
            var json = BenchmarksCommand.json(result, null);
            assertThat(json.required("ms").doubleValue()).as("%s", json).isPositive();
            assertThat(json.path("gflops").doubleValue(0) + json.path("gbps").doubleValue(0)).as("%s", json).isPositive();
        }
        assertThat(ran).isEqualTo(BenchmarksCommand.classes()).isNotEmpty();
    }
}
