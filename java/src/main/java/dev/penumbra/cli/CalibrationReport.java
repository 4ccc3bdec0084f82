package dev.penumbra.cli;

import dev.penumbra.expose.Manifest;
import dev.penumbra.expose.Manifest.Coverage;
import dev.penumbra.expose.Manifest.Layer;
import java.util.List;
import java.util.Locale;
import java.util.function.Function;
import java.util.function.ToDoubleFunction;

/** A calibration's figures as tables for a terminal. */
final class CalibrationReport {

    private CalibrationReport() {
    }

    static String of(Manifest m) {
        StringBuilder text = new StringBuilder();
        line(text,
                "%s: %d tokens, and %d held out that all figures are of; %d neurons a layer in blocks of %d; lists of %d tokens",
                m.model(), m.tokens(), m.heldOutTokens(), m.neurons(), m.blockSize(), m.listRows());
        text.append('\n');
        line(text,
                "How much a layer could skip: neurons that fire; blocks for a part of a list's mass; the mass in a part of the blocks");
        line(text, "layer   firing  never |   90%%   95%%   99%%  99.9%% | in 1/8   1/4   1/2   3/4 |");
        for (int i = 0; i < m.layers().size(); i++) {
            Layer l = m.layers().get(i);
            line(text, "%5d   %6s %6s | %s %s %s %6s | %s %s %s %s | %s", i, percent(l.fired()), percent(l.silent()),
                    percent(l.blocksFor().get("0.90")), percent(l.blocksFor().get("0.95")),
                    percent(l.blocksFor().get("0.99")),
                    percent(l.blocksFor().get("0.999")).strip(), " " + percent(l.coverageAt().get("0.125")),
                    percent(l.coverageAt().get("0.25")), percent(l.coverageAt().get("0.50")),
                    percent(l.coverageAt().get("0.75")), l.dense() ? "better left dense" : "");
        }
        text.append('\n');
        line(text,
                "Orders of neurons: mass of activations / of gradients in the best %s of a list's blocks; the chosen one is marked",
                percent(m.budget()).strip());
        List<String> names = m.layers().getFirst().orders().stream().map(Manifest.Order::name).toList();
        line(text, "layer   %s", String.join("  ", names.stream().map(name -> String.format("%-15s", name)).toList()));
        for (int i = 0; i < m.layers().size(); i++) {
            Layer l = m.layers().get(i);
            StringBuilder row = new StringBuilder();
            for (Manifest.Order order : l.orders()) {
                row.append(String.format("%-" + Math.max(15, order.name().length()) + "s  ",
                        percent(order.mass()).strip() + " / " + percent(order.gradient()).strip()
                                + (order.name().equals(l.order()) ? " *" : "")));
            }
            line(text, "%5d   %s", i, row.toString().stripTrailing());
        }
        text.append('\n');
        line(text, "Mass that a policy's choice of %s of the blocks covers", percent(m.budget()).strip());
        line(text, "layer                 oracle predicted   share  static random  seed's low-rank");
        for (int i = 0; i < m.layers().size(); i++) {
            coverage(text, String.format(Locale.ROOT, "%5d   list      ", i), m.layers().get(i).list());
            coverage(text, "        batch     ", m.layers().get(i).batch());
            coverage(text, "        adapters  ", m.layers().get(i).drifted());
        }
        coverage(text, " mean   list      ", mean(m, Layer::list));
        coverage(text, "        batch     ", mean(m, Layer::batch));
        coverage(text, "        adapters  ", mean(m, Layer::drifted));
        if (m.attention() != null) {
            text.append('\n').append(AttentionReport.of(m.attention()));
        }
        return text.toString();
    }

    private static Coverage mean(Manifest m, Function<Layer, Coverage> scope) {
        ToDoubleFunction<ToDoubleFunction<Coverage>> of = figure -> m
                .mean(layer -> figure.applyAsDouble(scope.apply(layer)));
        return new Coverage(of.applyAsDouble(Coverage::oracle), of.applyAsDouble(Coverage::predicted),
                of.applyAsDouble(Coverage::fixed), of.applyAsDouble(Coverage::random), of.applyAsDouble(Coverage::seed),
                of.applyAsDouble(Coverage::lowRank));
    }

    private static void coverage(StringBuilder text, String label, Coverage c) {
        line(text, "%s    %s    %s  %s  %s %s %s   %s", label, percent(c.oracle()), percent(c.predicted()),
                percent(c.shareOfOracle()), percent(c.fixed()), percent(c.random()), percent(c.seed()),
                percent(c.lowRank()));
    }

    private static String percent(double part) {
        return String.format(Locale.ROOT, "%5.1f%%", 100 * part);
    }

    private static void line(StringBuilder text, String format, Object... values) {
        text.append(String.format(Locale.ROOT, format, values).stripTrailing()).append('\n');
    }
}
