package dev.penumbra.jmh;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalDouble;
import java.util.TreeSet;
import java.util.stream.Stream;
import org.openjdk.jmh.results.RunResult;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ArrayNode;

/**
 * What a GPU's own libraries reach, as {@code peers/ceilings.py} measures it: what a benchmark's rate is a part of. For a
 * product that is cuBLAS on the same sizes, bare; beside it, what cuBLAS reaches with as much of our epilogue as it has. For attention SDPA on the same samples, for all that streams a copy of a GiB. What
 * streams stands beside a copy of as many bytes, too: the start and the end of a kernel are a large part of a small one.
 */
final class Ceilings {

    private static final Path PEER = Results.module().resolve("peers/ceilings.py");
    private static final JsonMapper JSON = new JsonMapper();
    private static final double GIGA_OF_TERA = 1000;

    /** A ceiling in the unit of a benchmark's rate, and what it was measured on. */
    record Ceiling(String what, String rate, double value) {
    }

    private final List<JsonNode> lines;

    Ceilings(List<String> lines) {
        this.lines = lines.stream().filter(line -> line.startsWith("{")).<JsonNode>map(JSON::readTree).toList();
        if (this.lines.isEmpty()) {
            throw new IllegalArgumentException("expected lines of JSON from " + PEER.getFileName() + ", found " + lines);
        }
    }

    /** Measures those that some benchmarks need, by the Python that PENUMBRA_PYTHON names. */
    static Ceilings measure(Collection<RunResult> results) throws IOException {
        TreeSet<String> shapes = new TreeSet<>();
        TreeSet<String> tokens = new TreeSet<>();
        TreeSet<String> sequences = new TreeSet<>();
        TreeSet<Long> copies = new TreeSet<>();
        for (RunResult result : results) {
            Sizes sizes = new Sizes(BenchmarksCommand.params(result));
            shapes.add(sizes.shape);
            tokens.add(Integer.toString(sizes.tokens));
            sequences.add(sizes.samples + "x" + sizes.sampleLength);
            BenchmarksCommand.bytes(result).ifPresent(copies::add);
        }
        List<String> command = new ArrayList<>(
                List.of(System.getenv().getOrDefault("PENUMBRA_PYTHON", "python3"), PEER.toString(), "--shapes"));
        command.addAll(shapes);
        command.add("--tokens");
        command.addAll(tokens);
        command.add("--sequences");
        command.addAll(sequences);
        command.add("--copies");
        copies.forEach(bytes -> command.add(Long.toString(bytes)));
        Process process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        List<String> lines = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8).lines().toList();
        try {
            if (process.waitFor() != 0) {
                throw new IOException(
                        "expected ceilings of " + String.join(" ", command) + ", found exit status " + process.exitValue());
            }
        } catch (InterruptedException stopped) {
            process.destroy();
            Thread.currentThread().interrupt();
            throw new IOException("stopped while ceilings were measured", stopped);
        }
        return new Ceilings(lines);
    }

    /** As measured. */
    ArrayNode json() {
        ArrayNode all = JSON.createArrayNode();
        lines.forEach(all::add);
        return all;
    }

    /**
     * The ceiling of a benchmark's rate.
     *
     * @param name "gemm.forward"
     * @param rates the rates that it has, of "gflops" and "gbps"; where it has both, memory decides
     */
    Optional<Ceiling> of(String name, Map<String, String> params, Collection<String> rates) {
        if (rates.contains("gbps")) {
            return copies().filter(line -> !line.has("bytes")).findFirst()
                    .map(line -> new Ceiling("a large copy", "gbps", GIGA_OF_TERA * line.required("tbps").doubleValue()));
        }
        return best(name, params, false)
                .map(line -> new Ceiling(line.has("length") ? "SDPA" : "cuBLAS", "gflops", gigaflops(line)));
    }

    /** A product's ceiling with an epilogue that cuBLAS has; {@code what} names the epilogue. Empty of what is no product. */
    Optional<Ceiling> withEpilogue(String name, Map<String, String> params) {
        return best(name, params, true)
                .map(line -> new Ceiling(line.required("epilogue").stringValue(), "gflops", gigaflops(line)));
    }

    private Optional<JsonNode> best(String name, Map<String, String> params, boolean epilogue) {
        Sizes sizes = new Sizes(params);
        // The rest of a step is products for the most part: their best rate is its ceiling.
        boolean own = name.startsWith("gemm.") || name.startsWith("attention.");
        return lines.stream().filter(line -> line.has("tflops"))
                .filter(line -> line.has("epilogue") == epilogue)
                .filter(line -> line.path("shape").asString("").equals(sizes.shape))
                .filter(line -> own ? line.required("what").stringValue().equals(name) : line.has("layer") && !epilogue)
                .filter(line -> !line.has("layer") || line.required("tokens").intValue() == sizes.tokens)
                .filter(line -> !line.has("layer") || !params.containsKey("layer")
                        || line.required("layer").stringValue().equals(params.get("layer").toLowerCase(Locale.ROOT)))
                .filter(line -> !line.has("length") || line.required("length").intValue() == sizes.sampleLength
                        && line.required("batch").intValue() == sizes.samples)
                .max(Comparator.comparingDouble(line -> line.required("tflops").doubleValue()));
    }

    private static double gigaflops(JsonNode line) {
        return GIGA_OF_TERA * line.required("tflops").doubleValue();
    }

    /** GB/s of a copy that moves, read and written together, so many bytes. */
    OptionalDouble ofCopy(long bytes) {
        return copies().filter(line -> line.path("bytes").asLong(0) == bytes)
                .mapToDouble(line -> GIGA_OF_TERA * line.required("tbps").doubleValue()).findFirst();
    }

    private Stream<JsonNode> copies() {
        return lines.stream().filter(line -> line.path("what").asString("").equals("copy"));
    }

    /** A benchmark's sizes by the names that the peer uses. */
    private record Sizes(String shape, int tokens, int samples, int sampleLength) {

        Sizes(Map<String, String> params) {
            this(ModelShape.valueOf(params.get("shape")).checkpoint, number(params, "batch") * number(params, "seqLen"),
                    number(params, "batch") * number(params, "seqLen")
                            / number(params, params.containsKey("sampleLength") ? "sampleLength" : "seqLen"),
                    number(params, params.containsKey("sampleLength") ? "sampleLength" : "seqLen"));
        }

        private static int number(Map<String, String> params, String name) {
            return Integer.parseInt(params.get(name));
        }
    }
}
