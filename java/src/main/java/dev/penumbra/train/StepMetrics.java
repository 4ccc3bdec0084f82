package dev.penumbra.train;

import org.jspecify.annotations.Nullable;

/**
 * One optimizer step.
 *
 * @param step counted from 1
 * @param loss mean over the step's supervised tokens, in nats
 * @param gradNorm global norm before clipping
 * @param realTokens tokens that are no padding
 * @param stepMs wall time
 * @param sparsity what a sparse step kept; null in a dense one
 */
public record StepMetrics(
        int step, double loss, double lr, double gradNorm, int realTokens, double tokensPerSecond, double stepMs,
        @Nullable StepSparsity sparsity) {

    /** Of a dense step. */
    public StepMetrics(int step, double loss, double lr, double gradNorm, int realTokens, double tokensPerSecond,
            double stepMs) {
        this(step, loss, lr, gradNorm, realTokens, tokensPerSecond, stepMs, null);
    }
}
