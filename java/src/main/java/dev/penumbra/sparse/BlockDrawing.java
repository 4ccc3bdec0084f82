package dev.penumbra.sparse;

import java.util.List;
import java.util.Locale;
import org.jspecify.annotations.Nullable;

/**
 * Masks as SVG: a layer's heads side by side, and rows of masks one below another, so that a predicted one and the true one
 * can be compared. Queries go downwards, keys to the right. Colours are the page's {@code --line} and {@code --text} where it
 * has them.
 */
public final class BlockDrawing {

    private static final int WIDTH = 720;
    private static final int LABEL = 72;
    private static final int GAP = 6;
    private static final int MOST_COLUMNS = 8;
    private static final int LINE = 16;
    private static final double FONT = 11;
    /** Letters times font size that fit over a head. */
    private static final double LONGEST = 140;
    /** Of what a head could attend to, where nothing is kept. */
    private static final double FAINT = 0.12;
    /** Shades that eyes tell apart. */
    private static final int SHADES = 8;

    /**
     * One row of triangles, one a head.
     *
     * @param name at the row's left
     * @param mask what is drawn
     * @param mass [heads, blocks, blocks]: drawn instead, the darker the larger, each head by its own largest off the blocks
     *     that are always kept; null: the mask
     */
    @SuppressWarnings("ArrayRecordComponent")
    public record Row(String name, BlockMask mask, float @Nullable [] mass) {

        public Row(String name, BlockMask mask) {
            this(name, mask, null);
        }
    }

    private BlockDrawing() {
    }

    /**
     * Draws rows of masks that have equally many heads.
     *
     * @param label what the picture is of, for those who do not see it
     * @param heads what each head is called; empty: its number
     */
    public static String svg(String label, List<String> heads, List<Row> rows) {
        int count = rows.getFirst().mask().heads();
        for (Row row : rows) {
            if (row.mask().heads() != count) {
                throw new IllegalArgumentException(
                        "expected masks of " + count + " heads in each row, found " + row.mask());
            }
        }
        int columns = Math.min(MOST_COLUMNS, count);
        double side = (double) (WIDTH - LABEL) / MOST_COLUMNS - GAP;
        int bands = Math.ceilDiv(count, columns);
        double bandHeight = LINE + rows.size() * (side + GAP);
        StringBuilder svg = new StringBuilder(String.format(Locale.ROOT,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" role=\"img\" aria-label=\"%s\">%n", WIDTH,
                bands * bandHeight, escaped(label)));
        for (int head = 0; head < count; head++) {
            double x = LABEL + head % columns * (side + GAP);
            double y = head / columns * bandHeight;
            text(svg, x, y + 12, "start", heads.isEmpty() ? Integer.toString(head) : heads.get(head));
            for (int r = 0; r < rows.size(); r++) {
                Row row = rows.get(r);
                double top = y + LINE + r * (side + GAP);
                if (head % columns == 0) {
                    text(svg, LABEL - GAP, top + side / 2, "end", row.name());
                }
                triangle(svg, row, head, x, top, side);
            }
        }
        return svg.append("</svg>\n").toString();
    }

    private static void triangle(StringBuilder svg, Row row, int head, double x, double y, double side) {
        int n = row.mask().blocks();
        double cell = side / n;
        svg.append(String.format(Locale.ROOT, "<g transform=\"translate(%.2f %.2f) scale(%.4f)\">", x, y, cell));
        path(svg, n, FAINT, (i, j) -> true);
        float[] mass = row.mass();
        if (mass == null) {
            path(svg, n, 1, (i, j) -> row.mask().keeps(head, i, j));
        } else {
            int at = head * n * n;
            float largest = Float.MIN_NORMAL;
            for (int i = 0; i < n; i++) {
                for (int j = 1; j < i; j++) {
                    largest = Math.max(largest, mass[at + i * n + j]);
                }
            }
            float most = largest;
            for (int shade = 1; shade <= SHADES; shade++) {
                int drawn = shade;
                // A root tells small masses apart, which decide what is kept.
                path(svg, n, (double) shade / SHADES, (i, j) -> Math.round(
                        SHADES * Math.sqrt(Math.min(1, Math.max(0, mass[at + i * n + j] / most)))) == drawn);
            }
        }
        svg.append("</g>\n");
    }

    /** The blocks on and below the diagonal that a rule has; neighbours in a row are one rectangle. */
    private static void path(StringBuilder svg, int n, double opacity, BlockPattern.Rule rule) {
        StringBuilder d = new StringBuilder();
        for (int i = 0; i < n; i++) {
            int j = 0;
            while (j <= i) {
                int from = j;
                while (j <= i && rule.keeps(i, j)) {
                    j++;
                }
                if (j > from) {
                    d.append('M').append(from).append(' ').append(i).append('h').append(j - from).append("v1h")
                            .append(from - j)
                            .append('z');
                }
                j++;
            }
        }
        if (!d.isEmpty()) {
            svg.append(
                    String.format(Locale.ROOT, "<path style=\"fill:var(--line,#2563eb)\" fill-opacity=\"%.3f\" d=\"%s\"/>",
                            opacity, d));
        }
    }

    private static void text(StringBuilder svg, double x, double y, String anchor, String text) {
        // Long names are set smaller, so that neighbours do not meet.
        double size = Math.min(FONT, LONGEST / Math.max(1, text.length()));
        svg.append(String.format(Locale.ROOT,
                "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" style=\"fill:var(--text,currentColor);font:%.1fpx sans-serif\">%s</text>%n",
                x, y, anchor, size, escaped(text)));
    }

    private static String escaped(String text) {
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\"", "&quot;");
    }
}
