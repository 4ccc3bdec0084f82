package dev.penumbra.cli;

import dev.penumbra.data.Dataset;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.train.TrainConfig;
import dev.penumbra.train.Trainer;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * What a training step takes, measured on steps of the run itself.
 *
 * @param steps that were timed
 * @param stepMs mean wall time of one, in milliseconds
 */
record TimeEstimate(int steps, double stepMs) {

    private static final double ENOUGH_MS = 2000;
    private static final int MOST_STEPS = 20;

    /**
     * Trains a few steps: until about two seconds are timed. The first warms up and is not counted.
     *
     * @param scratch is trained, and of no use after
     * @param config without an output folder and without saving; its number of steps is not read
     * @param exposure as {@link Trainer#exposure} takes it
     * @param attention as {@link Trainer#attentionExposure} takes it
     */
    static TimeEstimate measure(LanguageModel model, LoraAdapter scratch, TrainConfig.Builder config, Dataset data,
            @Nullable MlpExposure exposure, @Nullable AttentionExposure attention) {
        Trainer trainer = new Trainer(model, scratch, config.steps(1 + MOST_STEPS).warmupSteps(0).build(), data, null)
                .exposure(exposure).attentionExposure(attention);
        List<Double> times = new ArrayList<>();
        trainer.listener(step -> {
            if (step.step() > 1) {
                times.add(step.stepMs());
                if (times.stream().mapToDouble(Double::doubleValue).sum() >= ENOUGH_MS) {
                    trainer.cancel();
                }
            }
        }).run();
        return new TimeEstimate(times.size(), times.stream().mapToDouble(Double::doubleValue).average().orElseThrow());
    }
}
