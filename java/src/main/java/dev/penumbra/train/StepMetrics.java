package dev.penumbra.train;

/**
 * One optimizer step.
 *
 * @param step counted from 1
 * @param loss mean over the step's supervised tokens, in nats
 * @param gradNorm global norm before clipping
 * @param realTokens tokens that are no padding
 * @param stepMs wall time
 */
public record StepMetrics(
        int step, double loss, double lr, double gradNorm, int realTokens, double tokensPerSecond, double stepMs) {
}
