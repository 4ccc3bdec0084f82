package dev.penumbra.cli;

import dev.penumbra.train.StepMetrics;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** A page that needs nothing beside itself: the loss curve, what sparse steps kept, and a table, in the reader's light or dark. */
final class Report {

    private static final int WIDTH = 720;
    private static final int HEIGHT = 300;
    private static final int LEFT = 56;
    private static final int RIGHT = 10;
    private static final int TOP = 24;
    private static final int BOTTOM = 40;
    private static final int MOST_TICKS = 6;

    private Report() {
    }

    /** @param facts what the table says, in order */
    static String html(String title, List<StepMetrics> steps, Map<String, String> facts) {
        return html(title, steps, "", facts);
    }

    /** @param figures more of the page's parts, as HTML, between the curves and the table */
    static String html(String title, List<StepMetrics> steps, String figures, Map<String, String> facts) {
        StringBuilder rows = new StringBuilder();
        facts.forEach((name, value) -> rows.append("<tr><th scope=\"row\">").append(escape(name)).append("</th><td>")
                .append(escape(value)).append("</td></tr>\n"));
        return """
                <!doctype html><html lang="en"><head><meta charset="utf-8"><title>%1$s</title>
                <meta name="viewport" content="width=device-width, initial-scale=1"><style>
                :root { color-scheme: light dark; --line: #2563eb; --faint: #d4d4d8; --text: #18181b; --page: #ffffff }
                @media (prefers-color-scheme: dark) { :root { --line: #60a5fa; --faint: #3f3f46; --text: #e4e4e7; --page: #18181b } }
                body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; color: var(--text); background: var(--page) }
                svg { width: 100%%; height: auto } svg text { fill: var(--text); font-size: 12px } svg line { stroke: var(--faint) }
                svg rect { fill: var(--line) } svg polyline { fill: none; stroke: var(--line); stroke-width: 1.5 }
                table { border-collapse: collapse; width: 100%%; margin-top: 1rem } td, th { border-bottom: 1px solid var(--faint); padding: .35rem 0; vertical-align: top }
                th { text-align: left; padding-right: 1rem; white-space: nowrap } td { overflow-wrap: anywhere }
                </style></head><body><h1>%1$s</h1>
                %2$s%4$s<table>
                %3$s</table></body></html>
                """
                .formatted(escape(title), curve(steps), rows,
                        KeptMap.svg(steps, KeptMap.Of.MLP) + KeptMap.svg(steps, KeptMap.Of.ATTENTION) + figures);
    }

    private static String curve(List<StepMetrics> steps) {
        double highest = Math.max(1e-6, steps.stream().mapToDouble(StepMetrics::loss).max().orElse(1));
        double lossStep = tick(highest);
        double top = lossStep * Math.ceil(highest / lossStep);
        int last = steps.isEmpty() ? 1 : steps.getLast().step();
        double stepStep = Math.max(1, tick(last));
        StringBuilder svg = new StringBuilder(String.format(Locale.ROOT,
                "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Training loss by step\">%n", WIDTH, HEIGHT));
        for (int i = 0; i * lossStep <= top * (1 + 1e-9); i++) {
            double y = y(i * lossStep, top);
            svg.append(String.format(Locale.ROOT,
                    "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>%n",
                    LEFT, y, WIDTH - RIGHT, y, LEFT - 6, y + 4, label(i * lossStep)));
        }
        for (int i = 0; i * stepStep <= last; i++) {
            svg.append(String.format(Locale.ROOT, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>%n",
                    x(i * stepStep, last), HEIGHT - 22, label(i * stepStep)));
        }
        StringBuilder points = new StringBuilder();
        steps.forEach(
                step -> points.append(String.format(Locale.ROOT, "%.1f,%.1f ", x(step.step(), last), y(step.loss(), top))));
        return svg + "<polyline points=\"" + points.toString().strip() + "\"/>\n"
                + String.format(Locale.ROOT,
                        "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">step</text><text x=\"%d\" y=\"12\" text-anchor=\"end\">loss</text></svg>%n",
                        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, LEFT - 6);
    }

    /** A distance of 1, 2 or 5 times a power of ten that divides a range into a handful of parts. */
    static double tick(double range) {
        double least = range / MOST_TICKS;
        double power = Math.pow(10, Math.floor(Math.log10(least)));
        for (int factor : new int[]{1, 2, 5}) {
            if (factor * power >= least) {
                return factor * power;
            }
        }
        return 10 * power;
    }

    private static String label(double value) {
        return String.format(Locale.ROOT, "%.6f", value).replaceFirst("\\.?0+$", "");
    }

    private static double x(double step, int last) {
        return LEFT + (WIDTH - RIGHT - LEFT) * step / last;
    }

    private static double y(double loss, double top) {
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * loss / top;
    }

    /** Text as HTML has it. */
    static String escape(String text) {
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\"", "&quot;");
    }
}
