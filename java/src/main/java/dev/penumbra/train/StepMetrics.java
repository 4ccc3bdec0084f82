package dev.penumbra.train;

import java.util.Locale;
import org.jspecify.annotations.Nullable;

/**
 * One optimizer step.
 *
 * @param step counted from 1
 * @param loss mean over the step's supervised tokens, in nats
 * @param lr the learning rate that the step had
 * @param gradNorm global norm of the gradient before clipping
 * @param realTokens tokens of the samples, without padding
 * @param tokensPerSecond real tokens by the step's wall time
 * @param stepMs wall time, in milliseconds
 * @param sparsity what a sparse step kept of its MLPs' blocks; null where they are dense
 * @param attention what a sparse step kept of its attention's blocks; null where it is dense
 */
public record StepMetrics(
        int step, double loss, double lr, double gradNorm, int realTokens, double tokensPerSecond, double stepMs,
        @Nullable StepSparsity sparsity, @Nullable StepSparsity attention) {

    /** Of a step whose attention is dense. */
    public StepMetrics(int step, double loss, double lr, double gradNorm, int realTokens, double tokensPerSecond,
            double stepMs, @Nullable StepSparsity sparsity) {
        this(step, loss, lr, gradNorm, realTokens, tokensPerSecond, stepMs, sparsity, null);
    }

    /** Of a dense step. */
    public StepMetrics(int step, double loss, double lr, double gradNorm, int realTokens, double tokensPerSecond,
            double stepMs) {
        this(step, loss, lr, gradNorm, realTokens, tokensPerSecond, stepMs, null, null);
    }

    /** A line for people; a sparse step's ends with the parts of its blocks that it computed. */
    @Override
    public String toString() {
        return String.format(Locale.ROOT, "step %d  loss %.4f  lr %.2e  gradient norm %.3g  %.0f tokens/s  %.1f ms%s%s",
                step, loss,
                lr, gradNorm, tokensPerSecond, stepMs, kept("MLP", sparsity), kept("attention", attention));
    }

    private static String kept(String of, @Nullable StepSparsity sparsity) {
        return sparsity == null ? "" : String.format(Locale.ROOT, "  %s %.0f%%", of, 100 * sparsity.meanKept());
    }
}
