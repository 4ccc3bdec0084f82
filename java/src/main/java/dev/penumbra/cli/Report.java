package dev.penumbra.cli;

import dev.penumbra.train.StepMetrics;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/** A page that needs nothing beside itself: the loss curve and a table. */
final class Report {

    private static final int WIDTH = 720;
    private static final int HEIGHT = 300;
    private static final int LEFT = 56;
    private static final int BOTTOM = 36;
    private static final int TICKS = 5;

    private Report() {
    }

    static String html(List<StepMetrics> steps, Map<String, String> facts) {
        StringBuilder rows = new StringBuilder();
        facts.forEach((name, value) -> rows.append("<tr><th>").append(escape(name)).append("</th><td>").append(escape(value))
                .append("</td></tr>\n"));
        return """
                <!doctype html><html lang="en"><head><meta charset="utf-8"><title>Penumbra: demo</title>
                <meta name="viewport" content="width=device-width, initial-scale=1"><style>
                :root { color-scheme: light dark; --line: #2563eb; --faint: #d4d4d8; --text: #18181b; --page: #ffffff }
                @media (prefers-color-scheme: dark) { :root { --line: #60a5fa; --faint: #3f3f46; --text: #e4e4e7; --page: #18181b } }
                body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; color: var(--text); background: var(--page) }
                svg { width: 100%; height: auto } svg text { fill: var(--text); font-size: 12px }
                th { text-align: left; padding-right: 1rem; white-space: nowrap; vertical-align: top } td, th { border-bottom: 1px solid var(--faint) }
                </style></head><body><h1>Penumbra: demo</h1>
                """
                + svg(steps) + "<table>\n" + rows + "</table></body></html>\n";
    }

    private static String svg(List<StepMetrics> steps) {
        double top = steps.stream().mapToDouble(StepMetrics::loss).max().orElse(1) * 1.05;
        int last = steps.size();
        StringBuilder svg = new StringBuilder(String.format(Locale.ROOT,
                "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"Training loss by step\">", WIDTH, HEIGHT));
        for (int i = 0; i <= TICKS; i++) {
            double y = y(top * i / TICKS, top);
            double x = x(last * i / (double) TICKS, last);
            svg.append(String.format(Locale.ROOT,
                    "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"var(--faint)\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.2f</text>"
                            + "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d</text>",
                    LEFT, y, WIDTH - 10, y, LEFT - 6, y + 4, top * i / TICKS, x, HEIGHT - 18, last * i / TICKS));
        }
        StringBuilder points = new StringBuilder();
        steps.forEach(
                step -> points.append(String.format(Locale.ROOT, "%.1f,%.1f ", x(step.step(), last), y(step.loss(), top))));
        return svg + "<polyline fill=\"none\" stroke=\"var(--line)\" stroke-width=\"1.5\" points=\"" + points
                + "\"/><text x=\"" + WIDTH / 2 + "\" y=\"" + (HEIGHT - 2)
                + "\" text-anchor=\"middle\">step</text><text x=\"4\" y=\"12\">loss</text></svg>\n";
    }

    private static double x(double step, int last) {
        return LEFT + (WIDTH - 10 - LEFT) * step / Math.max(1, last);
    }

    private static double y(double loss, double top) {
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 20) * loss / top;
    }

    private static String escape(String text) {
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;");
    }
}
