package dev.penumbra.cli;

import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.StepSparsity;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/** Which part of its blocks each layer kept as a run went on: layers downwards, steps to the right, darker for more. */
final class KeptMap {

    private static final int WIDTH = 720;
    private static final int LEFT = 56;
    private static final int RIGHT = 10;
    private static final int TOP = 24;
    private static final int BOTTOM = 40;
    /** Steps that share a column are averaged. */
    private static final int MOST_COLUMNS = 120;
    /** What eyes tell apart; neighbours of one shade are one rectangle. */
    private static final int SHADES = 32;

    /** Whose blocks they are. */
    enum Of {
        MLP("MLP", "MLP", StepMetrics::sparsity), ATTENTION("attention", "attention, on and below the diagonals,",
                StepMetrics::attention);

        private final String name;
        private final String blocks;
        private final Function<StepMetrics, @Nullable StepSparsity> told;

        Of(String name, String blocks, Function<StepMetrics, @Nullable StepSparsity> told) {
            this.name = name;
            this.blocks = blocks;
            this.told = told;
        }

        /** Of a dense step, null. */
        @Nullable
        List<Double> kept(StepMetrics step) {
            StepSparsity sparsity = told.apply(step);
            return sparsity == null ? null : sparsity.kept();
        }
    }

    private KeptMap() {
    }

    /** Empty when no step was sparse. A dense step has kept all. */
    static String svg(List<StepMetrics> steps, Of of) {
        int layers = steps.stream().map(of::kept).filter(Objects::nonNull).mapToInt(List::size).max().orElse(0);
        if (layers == 0) {
            return "";
        }
        int columns = Math.min(MOST_COLUMNS, steps.size());
        double width = (double) (WIDTH - LEFT - RIGHT) / columns;
        int rowHeight = Math.clamp(240 / layers, 4, 16);
        int height = TOP + layers * rowHeight + BOTTOM;
        StringBuilder svg = new StringBuilder(String.format(Locale.ROOT,
                "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Kept part of the %s blocks by layer and step\">%n",
                WIDTH, height, of.name));
        for (int layer = 0; layer < layers; layer++) {
            row(svg, steps, of, layer, columns, width, TOP + layer * rowHeight, rowHeight);
        }
        int every = Math.max(1, (int) Report.tick(layers));
        for (int layer = 0; layer < layers; layer += every) {
            text(svg, LEFT - 6, TOP + (layer + 0.5) * rowHeight + 4, "end", Integer.toString(layer));
        }
        text(svg, LEFT - 6, 12, "end", "layer");
        text(svg, LEFT, height - 22, "start", Integer.toString(steps.getFirst().step()));
        text(svg, WIDTH - RIGHT, height - 22, "end", Integer.toString(steps.getLast().step()));
        text(svg, (LEFT + WIDTH - RIGHT) / 2.0, height - 4, "middle",
                "step; the darker, the more blocks of the layer's " + of.blocks + " were computed");
        return svg.append("</svg>\n").toString();
    }

    private static void row(StringBuilder svg, List<StepMetrics> steps, Of of, int layer, int columns, double width, int y,
            int height) {
        int from = 0;
        int shade = shade(steps, of, layer, 0, columns);
        for (int column = 1; column <= columns; column++) {
            int next = column == columns ? -1 : shade(steps, of, layer, column, columns);
            if (next != shade) {
                svg.append(String.format(Locale.ROOT,
                        "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill-opacity=\"%.3f\"/>%n",
                        LEFT + from * width, y, (column - from) * width, height - 1, (double) shade / SHADES));
                from = column;
                shade = next;
            }
        }
    }

    /** Of the mean over a column's steps, from 0 to {@link #SHADES}. */
    private static int shade(List<StepMetrics> steps, Of of, int layer, int column, int columns) {
        int first = (int) ((long) column * steps.size() / columns);
        int end = (int) ((long) (column + 1) * steps.size() / columns);
        double sum = 0;
        for (StepMetrics step : steps.subList(first, end)) {
            List<Double> kept = of.kept(step);
            sum += kept == null ? 1 : kept.get(layer);
        }
        return (int) Math.round(SHADES * sum / (end - first));
    }

    private static void text(StringBuilder svg, double x, double y, String anchor, String text) {
        svg.append(String.format(Locale.ROOT, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>%n", x, y, anchor,
                text));
    }
}
