package dev.penumbra.train;

import dev.penumbra.internal.Counted;
import dev.penumbra.model.PassOptions;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.SparsityConfig;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;

/**
 * How to train. Sizes count as PyTorch's and transformers' options of the same names.
 *
 * @param steps optimizer steps; 0: as many as {@code epochs} have
 * @param batchSize rows of a micro-batch
 * @param seqLen tokens of a row
 * @param lr the largest learning rate
 * @param schedule how the rate falls after warm-up
 * @param warmupSteps first steps, in which the rate rises from 0
 * @param weightDecay AdamW's: the part of a parameter, times the rate, that a step takes away
 * @param clip largest global norm of the gradient; 0: no clipping
 * @param gradAccum micro-batches whose gradients make one step
 * @param seed of the samples' order, of dropout and of random blocks
 * @param shuffle every epoch in another order, instead of all in the data's
 * @param pack several samples a row, instead of one sample a row padded to the batch's longest
 * @param evalEvery steps between evaluations; 0: only at the end, when there is evaluation data
 * @param saveEvery steps between checkpoints; 0: none but that of a cancelled run; they take an output
 * @param output the folder of the adapter and of checkpoints, which a run holds for itself and which has none of another run;
 *        null: nothing is written
 * @param baseModel the base model's name or path, written into the adapter's configuration; empty: the model's folder
 * @param resume go on from the output's last checkpoint; where there is none, nor an adapter, begin; takes an output
 * @param offloadedLayers of how many layers, from the lowest adapter's on, activations wait in host memory between forward and
 *        backward pass, {@link PassOptions#AUTOMATIC}: as many as cost hardly any time, and none in sparse runs. Results are the
 *        same
 * @param sparsity which blocks of MLP neurons steps compute; evaluations are dense
 * @param attention which blocks of keys steps attend to; sparse and sensed in the same steps as the MLPs
 */
public record TrainConfig(
        int steps,
        int epochs,
        int batchSize,
        int seqLen,
        double lr,
        Schedule schedule,
        int warmupSteps,
        double weightDecay,
        double clip,
        int gradAccum,
        long seed,
        boolean shuffle,
        boolean pack,
        int evalEvery,
        int saveEvery,
        @Nullable Path output,
        String baseModel,
        boolean resume,
        int offloadedLayers,
        SparsityConfig sparsity,
        AttentionConfig attention) {

    /** @throws IllegalArgumentException naming the value that is out of its range */
    public TrainConfig {
        require(steps >= 0, "steps of 0 or more", steps);
        require(epochs >= 1, "epochs of 1 or more", epochs);
        require(batchSize >= 1, "a batch size of 1 or more", batchSize);
        require(seqLen >= 2, "a sequence length of 2 or more", seqLen);
        require(lr >= 0 && Double.isFinite(lr), "a learning rate of 0 or more", lr);
        require(warmupSteps >= 0, "warm-up steps of 0 or more", warmupSteps);
        require(weightDecay >= 0 && Double.isFinite(weightDecay), "a weight decay of 0 or more", weightDecay);
        require(clip >= 0 && Double.isFinite(clip), "a clipping norm of 0 or more", clip);
        require(gradAccum >= 1, "micro-batches of 1 or more a step", gradAccum);
        require(evalEvery >= 0, "steps between evaluations of 0 or more", evalEvery);
        require(saveEvery >= 0, "steps between checkpoints of 0 or more", saveEvery);
        require(output != null || saveEvery == 0, "an output for checkpoints every " + Counted.of(saveEvery, "step"),
                "none");
        require(output != null || !resume, "an output to resume", "none");
        require(offloadedLayers >= PassOptions.AUTOMATIC, "offloaded layers of 0 or more, or -1", offloadedLayers);
        if (!sparsity.isOff() && !attention.isOff()) {
            require(sparsity.denseWarmup() == attention.denseWarmup(),
                    "one dense warm-up of MLPs and attention, which is " + sparsity.denseWarmup(), attention.denseWarmup());
            require(sparsity.senseEvery() == attention.senseEvery(),
                    "MLPs and attention measured together, every " + Counted.of(sparsity.senseEvery(), "step"),
                    attention.senseEvery());
        }
    }

    /** Part of the steps that come first and are dense. */
    public double denseWarmup() {
        return sparsity.isOff() ? attention.denseWarmup() : sparsity.denseWarmup();
    }

    /** Steps between those whose true coverage is measured; 0: none is. */
    public int senseEvery() {
        return sparsity.isOff() ? attention.senseEvery() : sparsity.senseEvery();
    }

    /** Whether every step is dense. */
    public boolean isDense() {
        return sparsity.isOff() && attention.isOff();
    }

    private static void require(boolean holds, String expected, Object found) {
        if (!holds) {
            throw new IllegalArgumentException("expected " + expected + ", found " + found);
        }
    }

    public static Builder builder() {
        return new Builder();
    }

    /** Starts from the defaults of the command line. */
    public static final class Builder {
        private int steps;
        private int epochs = 1;
        private int batchSize = 4;
        private int seqLen = 512;
        private double lr = 3e-4;
        private Schedule schedule = Schedule.LINEAR;
        private int warmupSteps;
        private double weightDecay;
        private double clip = 1;
        private int gradAccum = 1;
        private long seed = 42;
        private boolean shuffle = true;
        private boolean pack = true;
        private int evalEvery;
        private int saveEvery;
        private @Nullable Path output;
        private String baseModel = "";
        private boolean resume;
        private int offloadedLayers = PassOptions.AUTOMATIC;
        private SparsityConfig sparsity = SparsityConfig.OFF;
        private AttentionConfig attention = AttentionConfig.OFF;

        public Builder steps(int value) {
            steps = value;
            return this;
        }

        public Builder epochs(int value) {
            epochs = value;
            return this;
        }

        public Builder batchSize(int value) {
            batchSize = value;
            return this;
        }

        public Builder seqLen(int value) {
            seqLen = value;
            return this;
        }

        public Builder lr(double value) {
            lr = value;
            return this;
        }

        public Builder schedule(Schedule value) {
            schedule = value;
            return this;
        }

        public Builder warmupSteps(int value) {
            warmupSteps = value;
            return this;
        }

        public Builder weightDecay(double value) {
            weightDecay = value;
            return this;
        }

        public Builder clip(double value) {
            clip = value;
            return this;
        }

        public Builder gradAccum(int value) {
            gradAccum = value;
            return this;
        }

        public Builder seed(long value) {
            seed = value;
            return this;
        }

        public Builder shuffle(boolean value) {
            shuffle = value;
            return this;
        }

        public Builder pack(boolean value) {
            pack = value;
            return this;
        }

        public Builder evalEvery(int value) {
            evalEvery = value;
            return this;
        }

        public Builder saveEvery(int value) {
            saveEvery = value;
            return this;
        }

        public Builder output(@Nullable Path value) {
            output = value;
            return this;
        }

        public Builder baseModel(String value) {
            baseModel = value;
            return this;
        }

        public Builder resume(boolean value) {
            resume = value;
            return this;
        }

        public Builder offloadedLayers(int value) {
            offloadedLayers = value;
            return this;
        }

        public Builder sparsity(SparsityConfig value) {
            sparsity = value;
            return this;
        }

        public Builder attention(AttentionConfig value) {
            attention = value;
            return this;
        }

        public TrainConfig build() {
            return new TrainConfig(
                    steps, epochs, batchSize, seqLen, lr, schedule, warmupSteps, weightDecay, clip, gradAccum, seed, shuffle,
                    pack,
                    evalEvery, saveEvery, output, baseModel, resume, offloadedLayers, sparsity, attention);
        }
    }
}
