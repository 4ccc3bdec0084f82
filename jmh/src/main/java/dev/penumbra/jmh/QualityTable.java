package dev.penumbra.jmh;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.function.ToDoubleFunction;
import tools.jackson.databind.JsonNode;

/** What {@code quality.json} says, as a table: a way to tune a row, its seeds together. */
final class QualityTable {

    private QualityTable() {
    }

    static String of(JsonNode report) {
        Map<String, List<JsonNode>> byKey = new LinkedHashMap<>();
        for (JsonNode row : report.required("quality")) {
            byKey.computeIfAbsent(row.get("key").stringValue(), key -> new ArrayList<>()).add(row);
        }
        List<JsonNode> dense = byKey.getOrDefault("dense", List.of());
        double denseMean = mean(dense, QualityTable::loss);
        JsonNode base = report.required("base");
        StringBuilder text = new StringBuilder();
        text.append(String.format(Locale.ROOT,
                "# What skipping costs in quality%n%n%s, trained on %.0fM tokens of Python, %.0fM of them distinct (held-out loss %.3f); LoRA r=8 on q_proj and v_proj, tuned on C and C++ headers; untuned %.3f. The loss of a tuned adapter is the dense model's; losses, kept parts and times are means of the seeds, coverages and cosines the first seed's. Dense LoRA: %.4f, its seeds from %.4f to %.4f (%.2f%%).%n%n",
                base.required("shape").stringValue(), base.required("tokens").doubleValue() / 1e6,
                base.required("distinct_tokens").doubleValue() / 1e6,
                base.required("held_out_loss").doubleValue(), report.path("untuned_eval").asDouble(0), denseMean,
                extreme(dense, false), extreme(dense, true),
                100 * (extreme(dense, true) - extreme(dense, false)) / denseMean));
        if (byKey.values().stream().anyMatch(rows -> rows.getFirst().has("attention"))) {
            text.append("| MLPs' blocks | kept | attention's blocks | pass | asked for | kept | dense loss | beside dense | "
                    + "seeds | seeds apart | true coverage before, after | part of the best choice's | "
                    + "gradient cosine: mean, least | step ms |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
            byKey.values().forEach(rows -> attentionRow(text, rows, denseMean));
        } else {
            mlpTable(text, byKey, denseMean);
        }
        text.append(String.format("%n`%s`; %s; %s.%n", report.required("command").stringValue(),
                report.required("versions").required("backend").stringValue(), report.required("date").stringValue()));
        return text.toString();
    }

    private static void mlpTable(StringBuilder text, Map<String, List<JsonNode>> byKey, double denseMean) {
        text.append(
                "| policy | pass | block | rows of a list | asked for | kept | dense loss | beside dense | seeds | seeds apart | "
                        + "true coverage before, after | part of the best choice's | gradient cosine: mean, least | step ms |\n");
        text.append("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
        byKey.values().forEach(rows -> row(text, rows, denseMean));
    }

    private static void attentionRow(StringBuilder text, List<JsonNode> rows, double denseMean) {
        JsonNode first = rows.getFirst();
        JsonNode attention = first.path("attention");
        boolean mlp = !first.get("policy").stringValue().equals("off");
        boolean dense = !mlp && attention.isMissingNode();
        double loss = mean(rows, QualityTable::loss);
        text.append(String.format(Locale.ROOT,
                "| %s | %.3f | %s | %s | %s | %s | %.4f | %s | %d | %s | %s | %s | %s | %.1f |%n",
                mlp
                        ? first.get("policy").stringValue() + ", " + first.get("pass").stringValue() + ", " + asked(first)
                        : "dense",
                mean(rows, r -> r.get("kept").doubleValue()),
                attention.isMissingNode() ? "dense" : attention.get("policy").stringValue(),
                attention.path("pass").asString(""), attention.isMissingNode() ? "" : asked(attention),
                attention.isMissingNode()
                        ? ""
                        : String.format(Locale.ROOT, "%.3f", mean(rows, r -> r.path("attention").get("kept").doubleValue())),
                loss, dense ? "" : besideDense(loss, denseMean), rows.size(), apart(rows),
                coverages(attention), shares(attention), cosines(first), mean(rows, r -> r.get("step_ms").doubleValue())));
    }

    private static String apart(List<JsonNode> rows) {
        return rows.size() < 2 ? "" : String.format(Locale.ROOT, "%.4f", extreme(rows, true) - extreme(rows, false));
    }

    private static String besideDense(double loss, double denseMean) {
        return String.format(Locale.ROOT, "%+.2f%%", 100 * (loss / denseMean - 1));
    }

    private static String asked(JsonNode told) {
        return told.get("budget").doubleValue() < 1
                ? String.format(Locale.ROOT, "%.2f %s", told.get("budget").doubleValue(), told.path("spread").asString(""))
                        .strip()
                : String.format(Locale.ROOT, "coverage %.3f", told.get("coverage").doubleValue());
    }

    private static String coverages(JsonNode told) {
        return !told.has("before")
                ? ""
                : String.format(Locale.ROOT, "%.4f, %.4f", told.get("before").get("true_coverage").doubleValue(),
                        told.get("after").get("true_coverage").doubleValue());
    }

    private static String shares(JsonNode told) {
        return !told.has("before")
                ? ""
                : String.format(Locale.ROOT, "%.3f, %.3f", share(told.get("before")), share(told.get("after")));
    }

    private static String cosines(JsonNode row) {
        double mean = 0;
        double least = 1;
        for (JsonNode cosine : row.path("gradient_cosine")) {
            mean += cosine.doubleValue() / row.path("gradient_cosine").size();
            least = Math.min(least, cosine.doubleValue());
        }
        return row.has("gradient_cosine") ? String.format(Locale.ROOT, "%.4f, %.4f", mean, least) : "";
    }

    private static void row(StringBuilder text, List<JsonNode> rows, double denseMean) {
        JsonNode first = rows.getFirst();
        boolean off = first.get("policy").stringValue().equals("off");
        double loss = mean(rows, QualityTable::loss);
        text.append(String.format(Locale.ROOT,
                "| %s%s | %s | %s | %s | %s | %.3f | %.4f | %s | %d | %s | %s | %s | %s | %.1f |%n",
                off ? "dense" : first.get("policy").stringValue(),
                first.get("ordered").booleanValue() ? "" : ", neurons as stored",
                off ? "" : first.get("pass").stringValue(), off ? "" : first.get("block").intValue(),
                off ? "" : first.get("rows_per_list").intValue() == 0 ? "all" : first.get("rows_per_list").intValue(),
                off ? "" : asked(first), mean(rows, r -> r.get("kept").doubleValue()), loss,
                off ? "" : besideDense(loss, denseMean), rows.size(), apart(rows), coverages(first),
                shares(first), cosines(first), mean(rows, r -> r.get("step_ms").doubleValue())));
    }

    private static double share(JsonNode measured) {
        return measured.get("true_coverage").doubleValue() / measured.get("oracle_coverage").doubleValue();
    }

    private static double loss(JsonNode row) {
        return row.get("dense_eval").doubleValue();
    }

    private static double mean(List<JsonNode> rows, ToDoubleFunction<JsonNode> figure) {
        return rows.stream().mapToDouble(figure).average().orElse(Double.NaN);
    }

    private static double extreme(List<JsonNode> rows, boolean largest) {
        return largest
                ? rows.stream().mapToDouble(QualityTable::loss).max().orElse(Double.NaN)
                : rows.stream().mapToDouble(QualityTable::loss).min().orElse(Double.NaN);
    }
}
