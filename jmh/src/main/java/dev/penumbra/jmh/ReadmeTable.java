package dev.penumbra.jmh;

import dev.penumbra.jmh.Comparison.Unit;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.StringJoiner;
import java.util.TreeMap;
import java.util.stream.Stream;
import tools.jackson.databind.JsonNode;

/** The README's tables of figures, between two markers, written from the files of {@code jmh/results} and from nothing else. */
final class ReadmeTable {

    static final String BEGIN = "<!-- measured: jmh/run table --write -->";
    static final String END = "<!-- end of measured -->";

    private ReadmeTable() {
    }

    /** The tables of all comparisons, then of the benchmarks in bf16. */
    static String of(List<JsonNode> reports) {
        StringBuilder text = new StringBuilder();
        List<JsonNode> comparisons = reports.stream().filter(r -> r.has("comparison")).toList();
        // A table for each run; below the last of a machine's, what that is.
        Map<String, List<JsonNode>> byConditions = new LinkedHashMap<>();
        comparisons.forEach(r -> byConditions.computeIfAbsent(conditions(r), conditions -> new ArrayList<>()).add(r));
        byConditions.forEach((conditions, measured) -> {
            measured.forEach(report -> text.append('`').append(report.required("command").stringValue()).append("`\n\n")
                    .append(comparison(report)).append('\n'));
            text.append(conditions).append("\n\n");
        });
        Map<String, List<JsonNode>> byBackend = new LinkedHashMap<>();
        reports.stream().filter(r -> r.has("benchmarks"))
                .forEach(r -> byBackend.computeIfAbsent(backend(r), backend -> new ArrayList<>()).add(r));
        byBackend.values().forEach(measured -> operations(text, measured));
        return text.toString();
    }

    /** What one device did, with the part of its ceilings where they were measured. */
    private static void operations(StringBuilder text, List<JsonNode> reports) {
        JsonNode first = reports.getFirst();
        boolean onCuda = device(first).equals("CUDA");
        boolean withCeilings = reports.stream().anyMatch(r -> r.has("ceilings"));
        text.append("<details><summary>Operations").append(onCuda ? " on the GPU" : "")
                .append("</summary>\n\n| operation | parameters | ms | GFLOP/s | GB/s |")
                .append(withCeilings ? " of the ceiling |" : "").append("\n|---|---|---|---|---|")
                .append(withCeilings ? "---|" : "").append('\n');
        reports.forEach(report -> benchmarks(text, report, withCeilings));
        text.append('\n');
        reports.stream().map(r -> "`" + r.required("command").stringValue() + "`; " + conditions(r)).distinct()
                .forEach(run -> text.append(run).append('\n'));
        reports.forEach(report -> attentionFits(text, report));
        text.append("\n</details>\n\n");
    }

    private static String device(JsonNode report) {
        return report.required("benchmarks").path(0).path("params").path("device").asString("CPU");
    }

    /** Files that were recorded on one device stand in one table, whatever their dates. */
    private static String backend(JsonNode report) {
        return report.required("machine").required("processor") + "; " + report.required("versions").path("backend");
    }

    /** The peers, then Penumbra beside each of them and beside its own first. */
    static String comparison(JsonNode report) {
        JsonNode comparison = report.required("comparison");
        String label = comparison.required("unit").stringValue();
        Unit unit = Unit.labelled(label);
        List<JsonNode> peers = comparison.required("peers").valueStream().toList();
        List<JsonNode> ours = comparison.required("penumbra").valueStream().toList();
        boolean memory = peers.getFirst().has("peak_mib");
        List<String> head = new ArrayList<>(List.of(comparison.required("what").stringValue(), label));
        peers.forEach(peer -> head.add("faster than " + nameOf(peer)));
        if (ours.size() > 1) {
            head.add("faster than " + nameOf(ours.getFirst()));
        }
        if (memory) {
            head.addAll(List.of("peak memory, MiB", "of " + nameOf(peers.getFirst()) + "'s"));
        }
        StringBuilder text = new StringBuilder();
        row(text, head.toArray(String[]::new));
        text.append("|---".repeat(head.size())).append("|\n");
        for (JsonNode run : Stream.concat(peers.stream(), ours.stream()).toList()) {
            boolean peer = peers.contains(run);
            List<String> cells = new ArrayList<>(List.of(nameOf(run), plain(run.required("value"))));
            peers.forEach(other -> cells.add(peer ? "" : faster(unit, run, other)));
            if (ours.size() > 1) {
                cells.add(peer || run == ours.getFirst() ? "" : faster(unit, run, ours.getFirst()));
            }
            if (memory) {
                cells.add(plain(run.required("peak_mib")));
                cells.add(peer
                        ? ""
                        : String.format(Locale.ROOT, "%.2f", run.required("peak_mib").doubleValue()
                                / peers.getFirst().required("peak_mib").doubleValue()));
            }
            row(text, cells.toArray(String[]::new));
        }
        return text.toString();
    }

    private static String nameOf(JsonNode run) {
        return run.required("name").stringValue();
    }

    private static String faster(Unit unit, JsonNode run, JsonNode other) {
        return String.format(Locale.ROOT, "%.2fx",
                unit.faster(run.required("value").doubleValue(), other.required("value").doubleValue()));
    }

    private static void benchmarks(StringBuilder text, JsonNode report, boolean withCeilings) {
        Set<String> dense = new HashSet<>();
        for (JsonNode result : report.required("benchmarks")) {
            JsonNode params = result.required("params");
            // What has no lists is measured again for each size of their blocks.
            boolean again = params.has("kept") && !byLists(params)
                    && !dense.add(result.required("benchmark").stringValue() + parameters(params));
            if (isShown(params) && !again) {
                List<String> cells = new ArrayList<>(List.of(result.required("benchmark").stringValue(), parameters(params),
                        plain(result.required("ms")), result.has("gflops") ? plain(result.get("gflops")) : "",
                        result.has("gbps") ? plain(result.get("gbps")) : ""));
                if (withCeilings) {
                    cells.add(ofCeiling(result));
                }
                row(text, cells.toArray(String[]::new));
            }
        }
    }

    /** "0.67 of a large copy, 0.83 of one of its size", "0.91 of cuBLAS, 0.97 of cuBLAS with residual". */
    private static String ofCeiling(JsonNode result) {
        if (!result.has("of_ceiling")) {
            return "";
        }
        String ceiling = result.required("ceiling").stringValue();
        StringBuilder parts = new StringBuilder(part(result, "of_ceiling")).append(" of ").append(ceiling);
        if (result.has("of_copy_of_its_size")) {
            parts.append(", ").append(part(result, "of_copy_of_its_size")).append(" of one of its size");
        }
        if (result.has("epilogue")) {
            parts.append(", ").append(part(result, "of_ceiling_with_epilogue")).append(" of ").append(ceiling)
                    .append(" with ")
                    .append(result.required("epilogue").stringValue());
        }
        return parts.toString();
    }

    private static String part(JsonNode result, String name) {
        return String.format(Locale.ROOT, "%.2f", result.required(name).doubleValue());
    }

    /** How attention's time follows the sum of the squared lengths of a packed row's samples. */
    private static void attentionFits(StringBuilder text, JsonNode report) {
        Map<String, List<double[]>> pointsOf = new TreeMap<>();
        for (JsonNode result : report.required("benchmarks")) {
            JsonNode params = result.required("params");
            if (params.has("sampleLength") && isShown(params) && !byLists(params)) {
                double tokens = number(params, "batch") * number(params, "seqLen");
                pointsOf.computeIfAbsent(result.required("benchmark").stringValue(), name -> new ArrayList<>())
                        .add(new double[]{tokens * number(params, "sampleLength"), result.required("ms").doubleValue()});
            }
        }
        pointsOf.forEach((name, points) -> {
            if (points.stream().mapToDouble(point -> point[0]).distinct().count() > 2) {
                LinearFit fit = LinearFit.through(points);
                text.append(String.format(Locale.ROOT,
                        "\n%s over those samples: %.3g ms + %.3g ns for each unit of the sum of squared lengths, R² = %.4f.\n",
                        name, fit.intercept(), 1e6 * fit.slope(), fit.r2()));
            }
        });
    }

    private static boolean isShown(JsonNode params) {
        return !params.path("dtype").asString("BF16").equals("F32");
    }

    /** Whether listed blocks are computed alone: attention's have a word for none, an MLP's list of all blocks is none. */
    private static boolean byLists(JsonNode params) {
        String kept = params.path("kept").asString(AttentionBenchmark.DENSE);
        return !kept.equals(AttentionBenchmark.DENSE) && (params.has("sampleLength") || !kept.equals("1"));
    }

    private static double number(JsonNode params, String name) {
        return Double.parseDouble(params.required(name).stringValue());
    }

    /** What tells a row from its neighbours; device, dtype and thread count stand below the table. */
    private static String parameters(JsonNode params) {
        StringJoiner text = new StringJoiner(", ");
        text.add(ModelShape.valueOf(params.required("shape").stringValue()).checkpoint);
        text.add(params.required("batch").stringValue() + " x " + params.required("seqLen").stringValue());
        for (String own : List.of("layer", "sampleLength")) {
            if (params.has(own)) {
                text.add(own.equals("layer")
                        ? params.get(own).stringValue().toLowerCase(Locale.ROOT)
                        : "samples of " + params.get(own).stringValue());
            }
        }
        if (params.has("kept") && byLists(params)) {
            text.add(params.get("kept").stringValue() + " of its blocks of " + params.required("blockSize").stringValue());
        } else if (!params.has("kept") && params.has("blockSize")) {
            text.add("blocks of " + params.get("blockSize").stringValue());
        }
        if (!params.path("rowsPerList").asString("0").equals("0") && (byLists(params) || !params.has("kept"))) {
            text.add("a list for " + params.get("rowsPerList").stringValue() + " rows");
        }
        return text.toString();
    }

    private static String conditions(JsonNode report) {
        JsonNode machine = report.required("machine");
        List<String> parts = new ArrayList<>();
        parts.add(machine.required("processors").intValue() + " x " + machine.required("processor").stringValue());
        parts.add(machine.required("memory_gib").longValue() + " GiB");
        report.required("versions").properties()
                .forEach(version -> parts.add(version.getKey() + " " + version.getValue().stringValue()));
        if (report.has("others_share")) {
            parts.add(String.format(Locale.ROOT, "other processes took %.0f%% of the processors",
                    100 * report.get("others_share").doubleValue()));
        }
        parts.add(report.required("date").stringValue());
        return String.join("; ", parts) + ".";
    }

    private static void row(StringBuilder text, String... cells) {
        text.append("| ").append(String.join(" | ", cells)).append(" |\n");
    }

    /** Three significant digits, and all of a thousand or more. */
    private static String plain(JsonNode number) {
        double value = number.doubleValue();
        return value >= 999.5 ? String.format(Locale.ROOT, "%.0f", value) : String.format(Locale.ROOT, "%.3g", value);
    }

    /** The README with the text between its markers replaced. */
    static String replaceIn(String readme, String table) {
        int from = position(readme, BEGIN) + BEGIN.length();
        int to = position(readme, END);
        return readme.substring(0, from) + "\n" + table + readme.substring(to);
    }

    private static int position(String readme, String marker) {
        int at = readme.indexOf(marker);
        if (at < 0) {
            throw new IllegalStateException("expected the line " + marker + " in README.md, found none");
        }
        return at;
    }
}
