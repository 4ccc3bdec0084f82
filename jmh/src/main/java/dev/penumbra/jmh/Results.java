package dev.penumbra.jmh;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.LocalDate;
import java.time.ZoneOffset;
import java.util.List;
import java.util.Locale;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import picocli.CommandLine.Model.CommandSpec;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.SerializationFeature;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/**
 * The files of {@code jmh/results}: what was measured, with the machine, the versions and the command. A file has a list of
 * {@code benchmarks} (benchmark, params; ms, gflops and gbps of one operation, the bytes that it moves, and the parts of a GPU's
 * ceiling, of a copy of its size and of the ceiling with an epilogue) or a {@code comparison} (what, unit; of peers and of Penumbra
 * each name, value and, where it was measured, peak_mib).
 */
final class Results {

    private static final JsonMapper JSON = JsonMapper.builder().enable(SerializationFeature.INDENT_OUTPUT).build();

    private Results() {
    }

    /** The module's folder, where peers, results and (below target) models lie. */
    static Path module() {
        return Path.of(System.getProperty("penumbra.jmh.dir", ""));
    }

    static ObjectNode object() {
        return JSON.createObjectNode();
    }

    /** The command line that a command was given; of a file only its name, for the folder is another elsewhere; quoted for a shell. */
    static String command(CommandSpec spec) {
        return spec.root().commandLine().getParseResult().originalArgs().stream()
                .map(argument -> argument.contains("/") ? Path.of(argument).getFileName().toString() : argument)
                .map(argument -> argument.matches("[\\w./=,:-]+") ? argument : "'" + argument + "'")
                .collect(Collectors.joining(" ", "jmh/run ", ""));
    }

    /** A report without its figures. */
    static ObjectNode report(String command, String backend) throws IOException {
        ObjectNode report = object();
        report.put("date", LocalDate.now(ZoneOffset.UTC).toString());
        report.put("command", command);
        ObjectNode machine = report.putObject("machine");
        machine.put("processor", first(Path.of("/proc/cpuinfo"), "model name"));
        machine.put("processors", Runtime.getRuntime().availableProcessors());
        machine.put("memory_gib", Math.round(kibibytes(Path.of("/proc/meminfo"), "MemTotal") / 1048576.0));
        machine.put("os", System.getProperty("os.name") + " " + System.getProperty("os.version"));
        ObjectNode versions = report.putObject("versions");
        versions.put("jvm", Runtime.version().toString());
        versions.put("backend", backend);
        return report;
    }

    static void write(String name, ObjectNode report) throws IOException {
        Path file = module().resolve("results").resolve(name + ".json");
        Files.writeString(file, JSON.writeValueAsString(report) + "\n");
        System.out.println("wrote " + file);
    }

    /** Every file of results, in the order of their names. */
    static List<JsonNode> readAll() throws IOException {
        try (Stream<Path> files = Files.list(module().resolve("results"))) {
            return files.filter(f -> f.toString().endsWith(".json")).sorted().map(JSON::readTree).toList();
        }
    }

    /** Four significant digits: no measurement here has more. */
    static double rounded(double value) {
        return Double.parseDouble(String.format(Locale.ROOT, "%.4g", value));
    }

    /** The most memory this process had resident, in MiB. */
    static double peakMib() throws IOException {
        return kibibytes(Path.of("/proc/self/status"), "VmHWM") / 1024.0;
    }

    private static long kibibytes(Path file, String key) throws IOException {
        return Long.parseLong(first(file, key).replace("kB", "").strip());
    }

    private static String first(Path file, String key) throws IOException {
        for (String line : Files.readAllLines(file)) {
            if (line.startsWith(key)) {
                return line.substring(line.indexOf(':') + 1).strip();
            }
        }
        throw new IOException(file + ": expected a line of " + key + ", found none");
    }
}
