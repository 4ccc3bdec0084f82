package dev.penumbra.jmh;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import java.io.IOException;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import org.openjdk.jmh.results.Result;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.BenchmarkList;
import org.openjdk.jmh.runner.BenchmarkListEntry;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.format.OutputFormat;
import org.openjdk.jmh.runner.format.OutputFormatFactory;
import org.openjdk.jmh.runner.options.CommandLineOptionException;
import org.openjdk.jmh.runner.options.CommandLineOptions;
import org.openjdk.jmh.runner.options.Options;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.VerboseMode;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/** Runs JMH's benchmarks. */
@Command(name = "benchmarks", description = "Run the JMH benchmarks: milliseconds, GFLOP/s and GB/s.", mixinStandardHelpOptions = true)
final class BenchmarksCommand implements Callable<Integer> {

    @Option(names = "--record", description = "Write jmh/results/<device>-<benchmark>.json.")
    private boolean record;
    @Parameters(paramLabel = "JMH", description = "After --: a regular expression of names and JMH's options: -- Gemm -p dtype=BF16 -p shape=OPT_1_3B.")
    private List<String> jmh = List.of();
    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws RunnerException, CommandLineOptionException, IOException {
        OtherWork others = OtherWork.watch();
        Collection<RunResult> results = run(new CommandLineOptions(jmh.toArray(String[]::new)));
        System.out.print(table(results));
        if (record) {
            OtherWork.requireLittle(others.share());
            record(results);
        }
        return 0;
    }

    /** Runs what {@code options} select, metered. */
    static Collection<RunResult> run(Options options) throws RunnerException {
        return new Runner(new OptionsBuilder().parent(options).addProfiler(Meter.class).shouldFailOnError(true).build())
                .run();
    }

    /** The names of the classes that have benchmarks. */
    static Set<String> classes() {
        OutputFormat silent = OutputFormatFactory.createFormatInstance(System.out, VerboseMode.SILENT);
        return BenchmarkList.defaultList().getAll(silent, List.of()).stream()
                .map(BenchmarkListEntry::getUserClassQName)
                .map(name -> name.substring(name.lastIndexOf('.') + 1))
                .collect(Collectors.toCollection(TreeSet::new));
    }

    private void record(Collection<RunResult> results) throws IOException {
        Map<String, List<RunResult>> byClass = results.stream().collect(
                Collectors.groupingBy(r -> device(r) + "-" + simpleClass(r), TreeMap::new, Collectors.toList()));
        for (Map.Entry<String, List<RunResult>> file : byClass.entrySet()) {
            RunResult first = file.getValue().getFirst();
            Device device = new Device(Device.Kind.valueOf(first.getParams().getParam("device")), 0);
            String described;
            try (Backend backend = Backends.open(device, Integer.parseInt(first.getParams().getParam("threads")), true)) {
                described = backend.describe();
            }
            ObjectNode report = Results.report(Results.command(spec), described);
            ArrayNode list = report.putArray("benchmarks");
            file.getValue().forEach(result -> list.add(json(result)));
            Results.write(file.getKey(), report);
        }
    }

    static ObjectNode json(RunResult result) {
        ObjectNode node = Results.object();
        node.put("benchmark", name(result));
        ObjectNode params = node.putObject("params");
        params(result).forEach(params::put);
        node.put("ms", Results.rounded(score(result, Meter.MILLISECONDS)));
        for (String rate : List.of(Meter.GFLOPS, Meter.GIGABYTES)) {
            if (result.getSecondaryResults().containsKey(rate)) {
                node.put(rate.substring(rate.indexOf('.') + 1), Results.rounded(score(result, rate)));
            }
        }
        return node;
    }

    private static String table(Collection<RunResult> results) {
        StringBuilder text = new StringBuilder(
                String.format(Locale.ROOT, "%n%-28s %10s %10s %8s  %s%n", "benchmark", "ms", "GFLOP/s", "GB/s",
                        "parameters"));
        for (RunResult result : results) {
            text.append(String.format(Locale.ROOT, "%-28s %10s %10s %8s  %s%n", name(result),
                    cell(result, Meter.MILLISECONDS), cell(result, Meter.GFLOPS), cell(result, Meter.GIGABYTES),
                    params(result)));
        }
        return text.toString();
    }

    private static String cell(RunResult result, String label) {
        return result.getSecondaryResults().containsKey(label)
                ? String.format(Locale.ROOT, label.equals(Meter.MILLISECONDS) ? "%.3f" : "%.1f", score(result, label))
                : "";
    }

    private static double score(RunResult result, String label) {
        Result<?> measured = result.getSecondaryResults().get(label);
        if (measured == null) {
            throw new IllegalStateException("expected " + label + " of " + name(result) + ", found none: it enters no time");
        }
        return measured.getScore();
    }

    /** GemmBenchmark.forward is "gemm.forward". */
    private static String name(RunResult result) {
        String method = result.getParams().getBenchmark();
        return simpleClass(result) + method.substring(method.lastIndexOf('.'));
    }

    private static String simpleClass(RunResult result) {
        String[] path = result.getParams().getBenchmark().split("\\.");
        return path[path.length - 2].replace("Benchmark", "").toLowerCase(Locale.ROOT);
    }

    private static String device(RunResult result) {
        return result.getParams().getParam("device").toLowerCase(Locale.ROOT);
    }

    private static Map<String, String> params(RunResult result) {
        Map<String, String> params = new LinkedHashMap<>();
        result.getParams().getParamsKeys().forEach(key -> params.put(key, result.getParams().getParam(key)));
        return params;
    }
}
