package dev.penumbra.jmh;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import org.openjdk.jmh.infra.BenchmarkParams;
import org.openjdk.jmh.infra.IterationParams;
import org.openjdk.jmh.profile.InternalProfiler;
import org.openjdk.jmh.results.AggregationPolicy;
import org.openjdk.jmh.results.IterationResult;
import org.openjdk.jmh.results.Result;
import org.openjdk.jmh.results.ScalarResult;

/**
 * Turns the time and the work of a benchmark's operations into GFLOP/s and GB/s, beside JMH's own score. The time is what the
 * device took, which for an asynchronous device is not what the host's call took. All is of one operation, however many of them
 * one call of a benchmark runs.
 */
public final class Meter implements InternalProfiler {

    static final String MILLISECONDS = "device.ms";
    static final String GFLOPS = "device.gflops";
    static final String GIGABYTES = "device.gbps";
    static final String BYTES = "device.bytes";

    private static long operations;
    private static double milliseconds;
    private static long flops;
    private static long bytes;

    /**
     * Enters one operation, or the mean of many alike.
     *
     * @param itsFlops 0 where memory decides the time
     * @param itsBytes bytes that must cross memory at least once; 0 where arithmetic decides the time
     */
    static void add(double itsMilliseconds, long itsFlops, long itsBytes) {
        operations++;
        milliseconds += itsMilliseconds;
        flops += itsFlops;
        bytes += itsBytes;
    }

    @Override
    public String getDescription() {
        return "GFLOP/s and GB/s by the device's time";
    }

    @Override
    public void beforeIteration(BenchmarkParams benchmark, IterationParams iteration) {
        operations = 0;
        milliseconds = 0;
        flops = 0;
        bytes = 0;
    }

    @Override
    public Collection<? extends Result> afterIteration(BenchmarkParams benchmark, IterationParams iteration,
            IterationResult result) {
        List<Result<?>> results = new ArrayList<>();
        if (operations > 0) {
            results.add(average(MILLISECONDS, milliseconds / operations, "ms/op"));
            if (flops > 0) {
                results.add(average(GFLOPS, flops / milliseconds / 1e6, "GFLOP/s"));
            }
            if (bytes > 0) {
                results.add(average(GIGABYTES, bytes / milliseconds / 1e6, "GB/s"));
                results.add(average(BYTES, (double) bytes / operations, "B/op"));
            }
        }
        return results;
    }

    private static ScalarResult average(String label, double value, String unit) {
        return new ScalarResult(label, value, unit, AggregationPolicy.AVG);
    }
}
