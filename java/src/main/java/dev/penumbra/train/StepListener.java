package dev.penumbra.train;

import java.nio.file.Path;

/** Hears of a run's progress, on the thread that trains. */
@FunctionalInterface
public interface StepListener {

    /** Follows an optimizer step; on a device that computes behind the host the next one may be under way. */
    void onStep(StepMetrics metrics);

    /**
     * @param step the last one before it
     * @param loss mean over the evaluation data's supervised tokens, in nats
     */
    default void onEval(int step, double loss) {
    }

    /**
     * @param step the last one before it
     * @param dir the checkpoint, or the output folder for the final adapter
     */
    default void onSave(int step, Path dir) {
    }
}
