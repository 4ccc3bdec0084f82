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
import java.util.Optional;
import java.util.OptionalLong;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.results.Result;
import org.openjdk.jmh.results.RunResult;
import org.openjdk.jmh.runner.BenchmarkList;
import org.openjdk.jmh.runner.BenchmarkListEntry;
import org.openjdk.jmh.runner.Runner;
import org.openjdk.jmh.runner.RunnerException;
import org.openjdk.jmh.runner.format.OutputFormat;
import org.openjdk.jmh.runner.format.OutputFormatFactory;
import org.openjdk.jmh.runner.options.ChainedOptionsBuilder;
import org.openjdk.jmh.runner.options.CommandLineOptionException;
import org.openjdk.jmh.runner.options.CommandLineOptions;
import org.openjdk.jmh.runner.options.Options;
import org.openjdk.jmh.runner.options.OptionsBuilder;
import org.openjdk.jmh.runner.options.TimeValue;
import org.openjdk.jmh.runner.options.VerboseMode;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Parameters;
import picocli.CommandLine.Spec;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/** Runs JMH's benchmarks. */
@Command(name = "benchmarks", description = "Run the JMH benchmarks: milliseconds, GFLOP/s and GB/s of one operation, on a GPU as one of many in a graph.", mixinStandardHelpOptions = true)
final class BenchmarksCommand implements Callable<Integer> {

    /** As in the step that is compared with PEFT's; a parameter that a benchmark lacks is left out by JMH. */
    private static final Map<String, List<String>> GPU_PARAMS = Map.of("dtype", List.of("BF16"), "shape",
            List.of("OPT_1_3B"),
            "batch", List.of("4"), "seqLen", List.of("1024"), "sampleLength", List.of("1024", "256", "128"));
    private static final TimeValue GPU_TIME = TimeValue.milliseconds(150);

    @Option(names = "--record", description = "Write jmh/results/<device>-<benchmark>.json.")
    private boolean record;
    @Option(names = "--suffix", defaultValue = "", paramLabel = "WORD", description = "With --record: write <device>-<benchmark>-WORD.json instead, beside what other parameters gave.")
    private String suffix;
    @Option(names = "--device", defaultValue = "CPU", paramLabel = "KIND", description = "CPU or CUDA. On CUDA every operation by default, in bf16 on opt-1.3b with 4 x 1024 tokens, in this process; step-vs-peft measures whole steps there.")
    private Device.Kind device;
    @Option(names = "--no-ceilings", description = "On CUDA: do not measure what cuBLAS, SDPA and a copy reach, which needs a Python with PyTorch.")
    private boolean noCeilings;
    @Parameters(paramLabel = "JMH", description = "After --: a regular expression of names and JMH's options: -- Gemm -p dtype=BF16 -p shape=OPT_1_3B.")
    private List<String> jmh = List.of();
    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws RunnerException, CommandLineOptionException, IOException {
        if (!suffix.isEmpty() && !(record && suffix.matches("[a-z0-9-]+"))) {
            throw new ParameterException(spec.commandLine(),
                    "expected --suffix with --record and of a to z, 0 to 9 and -, found --suffix " + suffix);
        }
        OtherWork others = OtherWork.watch();
        Options asked = new CommandLineOptions(jmh.toArray(String[]::new));
        Collection<RunResult> results = run(device == Device.Kind.CUDA ? onCuda(asked) : asked);
        double othersShare = others.share();
        Ceilings ceilings = ceilings(results);
        System.out.print(table(results, ceilings));
        if (record) {
            OtherWork.requireLittle(othersShare, device);
            record(results, ceilings, othersShare);
        }
        return 0;
    }

    /**
     * What was not asked for otherwise is chosen for a GPU. Its own clock gives the times, so neither a fresh JVM nor long
     * iterations make them better, and setting up is most of what a fork would do.
     */
    static Options onCuda(Options asked) {
        ChainedOptionsBuilder options = new OptionsBuilder().parent(asked).param("device", Device.Kind.CUDA.name());
        GPU_PARAMS.forEach((name, values) -> {
            if (!asked.getParameter(name).hasValue()) {
                options.param(name, values.toArray(String[]::new));
            }
        });
        if (!asked.getForkCount().hasValue()) {
            options.forks(0);
        }
        if (!asked.getWarmupTime().hasValue()) {
            options.warmupTime(GPU_TIME);
        }
        if (!asked.getMeasurementTime().hasValue()) {
            options.measurementTime(GPU_TIME);
        }
        if (asked.getIncludes().isEmpty()) {
            options.exclude(StepBenchmark.class.getSimpleName());
        }
        return options.build();
    }

    private @Nullable Ceilings ceilings(Collection<RunResult> results) {
        if (noCeilings || results.isEmpty() || results.stream().noneMatch(r -> device(r).equals("cuda"))) {
            return null;
        }
        try {
            return Ceilings.measure(results);
        } catch (IOException | IllegalArgumentException missing) {
            // What was measured is not lost for want of what it is compared with.
            System.err.println("jmh/run: no ceilings: " + missing.getMessage());
            return null;
        }
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

    private void record(Collection<RunResult> results, @Nullable Ceilings ceilings, double othersShare) throws IOException {
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
            report.put("others_share", Results.rounded(othersShare));
            if (ceilings != null) {
                report.set("ceilings", ceilings.json());
            }
            ArrayNode list = report.putArray("benchmarks");
            file.getValue().forEach(result -> list.add(json(result, ceilings)));
            Results.write(suffix.isEmpty() ? file.getKey() : file.getKey() + "-" + suffix, report);
        }
    }

    static ObjectNode json(RunResult result, @Nullable Ceilings ceilings) {
        ObjectNode node = Results.object();
        node.put("benchmark", name(result));
        ObjectNode params = node.putObject("params");
        params(result).forEach(params::put);
        node.put("ms", Results.rounded(score(result, Meter.MILLISECONDS)));
        for (String rate : List.of(Meter.GFLOPS, Meter.GIGABYTES)) {
            if (result.getSecondaryResults().containsKey(rate)) {
                node.put(unit(rate), Results.rounded(score(result, rate)));
            }
        }
        bytes(result).ifPresent(bytes -> node.put("bytes", bytes));
        ceiling(result, ceilings).ifPresent(ceiling -> {
            node.put("ceiling", ceiling.what());
            node.put("of_ceiling", Results.rounded(node.required(ceiling.rate()).doubleValue() / ceiling.value()));
            if (node.has("bytes")) {
                ceilings.ofCopy(node.get("bytes").longValue()).ifPresent(
                        copy -> node.put("of_copy_of_its_size",
                                Results.rounded(node.required("gbps").doubleValue() / copy)));
            }
            ceilings.withEpilogue(name(result), params(result)).ifPresent(same -> {
                node.put("epilogue", same.what());
                node.put("of_ceiling_with_epilogue",
                        Results.rounded(node.required(same.rate()).doubleValue() / same.value()));
            });
        });
        return node;
    }

    private static Optional<Ceilings.Ceiling> ceiling(RunResult result, @Nullable Ceilings ceilings) {
        if (ceilings == null || !device(result).equals("cuda")) {
            return Optional.empty();
        }
        return ceilings.of(name(result), params(result), Stream.of(Meter.GFLOPS, Meter.GIGABYTES)
                .filter(result.getSecondaryResults()::containsKey).map(BenchmarksCommand::unit).toList());
    }

    /** What one operation moves; empty where arithmetic decides the time. */
    static OptionalLong bytes(RunResult result) {
        return result.getSecondaryResults().containsKey(Meter.BYTES)
                ? OptionalLong.of(Math.round(score(result, Meter.BYTES)))
                : OptionalLong.empty();
    }

    /** Of a rate: what stands behind the dot. */
    private static String unit(String rate) {
        return rate.substring(rate.indexOf('.') + 1);
    }

    private static String table(Collection<RunResult> results, @Nullable Ceilings ceilings) {
        StringBuilder text = new StringBuilder(
                String.format(Locale.ROOT, "%n%-32s %10s %10s %8s %11s %10s %13s  %s%n", "benchmark", "ms", "GFLOP/s",
                        "GB/s", "of ceiling", "its copy", "with epilogue", "parameters"));
        for (RunResult result : results) {
            JsonNode json = json(result, ceilings);
            text.append(String.format(Locale.ROOT, "%-32s %10s %10s %8s %11s %10s %13s  %s%n", name(result),
                    cell(result, Meter.MILLISECONDS), cell(result, Meter.GFLOPS), cell(result, Meter.GIGABYTES),
                    part(json, "of_ceiling"), part(json, "of_copy_of_its_size"),
                    part(json, "of_ceiling_with_epilogue"), params(result)));
        }
        return text.toString();
    }

    private static String part(JsonNode json, String of) {
        return json.has(of) ? String.format(Locale.ROOT, "%.2f", json.get(of).doubleValue()) : "";
    }

    private static String cell(RunResult result, String label) {
        return result.getSecondaryResults().containsKey(label)
                ? String.format(Locale.ROOT, label.equals(Meter.MILLISECONDS) ? "%.4f" : "%.1f", score(result, label))
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

    static Map<String, String> params(RunResult result) {
        Map<String, String> params = new LinkedHashMap<>();
        result.getParams().getParamsKeys().forEach(key -> params.put(key, result.getParams().getParam(key)));
        return params;
    }
}
