package dev.penumbra.cli;

import dev.penumbra.train.StepListener;
import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.StepSparsity;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.Locale;
import org.jspecify.annotations.Nullable;

/**
 * A bar that is rewritten in place on a terminal, elsewhere a plain line now and then; evaluations and saves on lines of their
 * own.
 */
final class Progress implements StepListener {

    private static final int WIDTH = 24;
    private static final long PLAIN_LINE_NANOS = 5_000_000_000L;

    private final PrintWriter out;
    private final int totalSteps;
    private final boolean terminal;
    private long lastPlain;
    private double meanMs;
    private boolean barOpen;

    Progress(PrintWriter out, int totalSteps) {
        this(out, totalSteps, System.console() != null && System.console().isTerminal());
    }

    Progress(PrintWriter out, int totalSteps, boolean terminal) {
        this.out = out;
        this.totalSteps = totalSteps;
        this.terminal = terminal;
    }

    @Override
    public void onStep(StepMetrics step) {
        meanMs = meanMs == 0 ? step.stepMs() : 0.9 * meanMs + 0.1 * step.stepMs();
        boolean last = step.step() == totalSteps;
        long now = System.nanoTime();
        if (!terminal && !last && lastPlain != 0 && now - lastPlain < PLAIN_LINE_NANOS) {
            return;
        }
        lastPlain = now;
        int full = (int) ((long) WIDTH * step.step() / totalSteps);
        String line = String.format(Locale.ROOT, "[%s%s] %d/%d  loss %.4f  %s%.0f tokens/s  ETA %s", "#".repeat(full),
                ".".repeat(WIDTH - full), step.step(), totalSteps, step.loss(), kept(step), step.tokensPerSecond(),
                duration((totalSteps - step.step()) * meanMs / 1000));
        if (terminal) {
            // Blanks cover what a longer line left.
            out.print("\r" + line + "   ");
            barOpen = true;
        } else {
            out.println(line);
        }
        if (last) {
            closeBar();
        }
        out.flush();
    }

    private static String kept(StepMetrics step) {
        return kept("MLP", step.sparsity()) + kept("attention", step.attention());
    }

    private static String kept(String of, @Nullable StepSparsity sparsity) {
        return sparsity == null ? "" : String.format(Locale.ROOT, "%s %.0f%%  ", of, 100 * sparsity.meanKept());
    }

    @Override
    public void onEval(int step, double loss) {
        say(String.format(Locale.ROOT, "step %d: evaluation loss %.4f, perplexity %.2f", step, loss, Math.exp(loss)));
    }

    @Override
    public void onSave(int step, Path folder) {
        say("step " + step + ": saved " + folder);
    }

    private void say(String line) {
        closeBar();
        out.println(line);
        out.flush();
    }

    private void closeBar() {
        if (barOpen) {
            out.println();
            barOpen = false;
        }
    }

    /** Minutes and seconds, with hours when there are any: 0:07, 12:30, 3:05:00. */
    static String duration(double seconds) {
        long s = Math.round(seconds);
        return s < 3600
                ? String.format(Locale.ROOT, "%d:%02d", s / 60, s % 60)
                : String.format(Locale.ROOT, "%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
    }
}
