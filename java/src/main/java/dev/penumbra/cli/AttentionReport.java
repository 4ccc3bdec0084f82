package dev.penumbra.cli;

import dev.penumbra.expose.Manifest.Attention;
import dev.penumbra.expose.Manifest.AttentionCoverage;
import dev.penumbra.expose.Manifest.AttentionHead;
import dev.penumbra.expose.Manifest.AttentionLayer;
import dev.penumbra.internal.Counted;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Function;
import java.util.stream.Collectors;

/** What a calibration says of attention, as tables for a terminal. */
final class AttentionReport {

    private static final int MOST_LAYOUTS = 12;

    private AttentionReport() {
    }

    static String of(Attention a) {
        StringBuilder text = new StringBuilder();
        line(text,
                "Attention in blocks of %d tokens: %s of two blocks or more, and %d held out that figures are of; the "
                        + "longest has %d blocks",
                a.blockSize(), Counted.of(a.samples(), "sample"), a.heldOutSamples(), a.blocks());
        text.append('\n');
        line(text, "Blocks that hold a part of a head's mass, in %% of those on and below the diagonal, head by head");
        line(text, "(mean: of all samples; worst: the one that needs most, of those at least half as long as the longest)");
        line(text, "layer   mass           %s", numbers(a.heads()));
        for (int i = 0; i < a.layers().size(); i++) {
            AttentionLayer layer = a.layers().get(i);
            for (double coverage : a.coverages()) {
                String key = String.format(Locale.ROOT, "%.2f", coverage);
                line(text, "%5s   %3.0f%%   mean    %s", coverage == a.coverages().getFirst() ? Integer.toString(i) : "",
                        100 * coverage, heads(layer, head -> head.blocksFor().get(key)));
                line(text, "               worst   %s", heads(layer, head -> head.worst().get(key)));
            }
        }
        text.append('\n');
        AttentionCoverage all = mean(a, AttentionLayer::plain);
        line(text,
                "Mass that a policy's choice of these blocks holds at a budget of %s (with those that are always kept, a sample's "
                        + "diagonal and its first key block, %s)",
                percent(a.budget()).strip(), percent(all.kept()).strip());
        if (!all.chooses()) {
            line(text, "With samples of so few blocks the budget leaves nothing to choose: all policies are the same.");
        }
        line(text,
                "layer               oracle predicted   share  static patterns bigbird longformer random |  always  share of "
                        + "the choice");
        for (int i = 0; i < a.layers().size(); i++) {
            coverage(text, String.format(Locale.ROOT, "%5d   plain     ", i), a.layers().get(i).plain());
            coverage(text, "        adapters  ", a.layers().get(i).drifted());
        }
        coverage(text, " mean   plain     ", all);
        coverage(text, "        adapters  ", mean(a, AttentionLayer::drifted));
        text.append('\n');
        line(text, "Patterns of the pool (version %d): %s", a.poolVersion(), String.join(", ", a.patterns()));
        line(text, "Layouts of heads, the most frequent: %s", layouts(a));
        return text.toString();
    }

    private static String numbers(int heads) {
        StringBuilder row = new StringBuilder();
        for (int h = 0; h < heads; h++) {
            row.append(String.format(Locale.ROOT, "%4d", h));
        }
        return row.toString();
    }

    private static String heads(AttentionLayer layer, Function<AttentionHead, Double> part) {
        return layer.heads().stream().map(head -> String.format(Locale.ROOT, "%4.0f", 100 * part.apply(head)))
                .collect(Collectors.joining());
    }

    private static String layouts(Attention a) {
        Map<String, Integer> counts = new TreeMap<>();
        for (AttentionLayer layer : a.layers()) {
            for (AttentionHead head : layer.heads()) {
                counts.merge(head.layout().isEmpty() ? "always" : String.join("+", head.layout()), 1, Integer::sum);
            }
        }
        List<Map.Entry<String, Integer>> sorted = counts.entrySet().stream()
                .sorted(Map.Entry.<String, Integer>comparingByValue().reversed()).toList();
        String text = sorted.stream().limit(MOST_LAYOUTS).map(entry -> entry.getKey() + " (" + entry.getValue() + ")")
                .collect(Collectors.joining(", "));
        return sorted.size() > MOST_LAYOUTS ? text + ", and " + (sorted.size() - MOST_LAYOUTS) + " others" : text;
    }

    /** Of the layers; one that has no predictor counts by its means. */
    private static AttentionCoverage mean(Attention a, Function<AttentionLayer, AttentionCoverage> scope) {
        List<AttentionCoverage> layers = a.layers().stream().map(scope).toList();
        Double predicted = layers.stream().allMatch(c -> c.predicted() == null)
                ? null
                : layers.stream().mapToDouble(c -> c.predicted() == null ? c.fixed() : c.predicted()).average().orElse(0);
        return new AttentionCoverage(a.mean(l -> scope.apply(l).kept()),
                layers.stream().anyMatch(AttentionCoverage::chooses),
                a.mean(l -> scope.apply(l).always()), a.mean(l -> scope.apply(l).oracle()), predicted,
                a.mean(l -> scope.apply(l).fixed()), a.mean(l -> scope.apply(l).pool()),
                a.mean(l -> scope.apply(l).bigBird()), a.mean(l -> scope.apply(l).longformer()),
                a.mean(l -> scope.apply(l).random()));
    }

    private static void coverage(StringBuilder text, String label, AttentionCoverage c) {
        boolean none = c.predicted() == null;
        line(text, "%s  %s    %s  %s  %s   %s  %s     %s %s |  %s  %s", label, percent(c.oracle()),
                none ? "     -" : percent(c.predicted()), none ? "     -" : percent(c.shareOfOracle()), percent(c.fixed()),
                percent(c.pool()), percent(c.bigBird()), percent(c.longformer()), percent(c.random()), percent(c.always()),
                none ? "     -" : percent(c.shareOfChoice()));
    }

    private static String percent(double part) {
        return String.format(Locale.ROOT, "%5.1f%%", 100 * part);
    }

    private static void line(StringBuilder text, String format, Object... values) {
        text.append(String.format(Locale.ROOT, format, values).stripTrailing()).append('\n');
    }
}
