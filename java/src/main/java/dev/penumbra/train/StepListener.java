package dev.penumbra.train;

import java.nio.file.Path;

/** Hears of a run's progress, on the thread that trains. */
@FunctionalInterface
public interface StepListener {

    void onStep(StepMetrics metrics);

    /** @param loss mean over the evaluation data's supervised tokens */
    default void onEval(int step, double loss) {
    }

    /** @param dir the checkpoint, or the output folder for the final adapter */
    default void onSave(int step, Path dir) {
    }
}
