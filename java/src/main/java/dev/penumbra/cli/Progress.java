package dev.penumbra.cli;

import dev.penumbra.train.StepListener;
import dev.penumbra.train.StepMetrics;
import java.io.PrintWriter;
import java.util.Locale;

/** A bar that is rewritten in place on a terminal; elsewhere a plain line now and then. */
final class Progress implements StepListener {

    private static final int WIDTH = 24;
    private static final long PLAIN_LINE_NANOS = 5_000_000_000L;

    private final PrintWriter out;
    private final int totalSteps;
    private final boolean terminal;
    private long lastPlain;
    private double meanMs;

    Progress(PrintWriter out, int totalSteps) {
        this.out = out;
        this.totalSteps = totalSteps;
        terminal = System.console() != null && System.console().isTerminal();
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
        long eta = Math.round((totalSteps - step.step()) * meanMs / 1000);
        String line = String.format(Locale.ROOT, "[%s%s] %d/%d  loss %.4f  %.0f tokens/s  ETA %d:%02d", "#".repeat(full),
                ".".repeat(WIDTH - full),
                step.step(), totalSteps, step.loss(), step.tokensPerSecond(), eta / 60, eta % 60);
        if (terminal) {
            out.print("\r" + line + "   " + (last ? System.lineSeparator() : ""));
        } else {
            out.println(line);
        }
        out.flush();
    }
}
