package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Readback;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.model.BlockChoice;
import dev.penumbra.model.ModelPass;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.SparsityConfig;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** When a run's steps are sparse, what they tell of it, and how what is asked of the lists follows what is measured. */
final class SparseSteps {

    /** Differences below this are left alone: they are smaller than those between batches. */
    private static final double TOLERANCE = 0.005;
    /** Each step asks for a graph of its own to be recorded: few, and none that asks for practically everything. */
    private static final int LEAST_TIGHTNESS = -4;

    private static final int MOST_TIGHTNESS = 8;

    private final ModelPass pass;
    private final int denseSteps;
    private final int senseEvery;
    private final @Nullable Lists mlp;
    private final @Nullable Lists attention;

    /** The lists of MLPs, or those of attention. */
    private static final class Lists {
        private final BlockChoice choice;
        private final double coverage;
        private final boolean adjust;
        private int tightness;

        Lists(BlockChoice choice, double coverage, boolean adjust) {
            this.choice = choice;
            this.coverage = coverage;
            this.adjust = adjust;
        }

        void setTightness(int steps) {
            tightness = steps;
            choice.tighten(steps);
        }

        List<Double> measure() {
            List<Double> measured = Arrays.stream(choice.coverage()).boxed().toList();
            if (adjust && coverage < 1 && choice.hasLists()) {
                double mean = meanOfSparse(measured);
                if (mean < coverage - TOLERANCE) {
                    setTightness(Math.min(MOST_TIGHTNESS, tightness + 1));
                } else if (mean > coverage + TOLERANCE) {
                    setTightness(Math.max(LEAST_TIGHTNESS, tightness - 1));
                }
            }
            return measured;
        }

        private double meanOfSparse(List<Double> measured) {
            double sum = 0;
            int count = 0;
            for (int i = 0; i < measured.size(); i++) {
                if (choice.isSparse(i)) {
                    sum += measured.get(i);
                    count++;
                }
            }
            return count == 0 ? 1 : sum / count;
        }

        /** @param summaries as {@link BlockChoice#summaries} has them */
        StepSparsity told(float[] summaries, List<Double> trueCoverage) {
            List<Double> kept = new ArrayList<>();
            List<Double> covered = new ArrayList<>();
            List<Double> cut = new ArrayList<>();
            for (int i = 0; i < summaries.length / SelectBlocks.SUMMARY_SIZE; i++) {
                int at = i * SelectBlocks.SUMMARY_SIZE;
                boolean sparse = choice.isSparse(i);
                kept.add(sparse ? summaries[at] : 1.0);
                covered.add(sparse ? summaries[at + 1] : 1.0);
                cut.add(sparse ? summaries[at + 2] : 0.0);
            }
            return new StepSparsity(kept, covered, cut, trueCoverage);
        }
    }

    /** What a step has been asked to tell. */
    record Asked(@Nullable Readback mlp, @Nullable Readback attention, List<Double> mlpCoverage,
            List<Double> attentionCoverage) {
    }

    private SparseSteps(TrainConfig config, ModelPass pass, int totalSteps) {
        this.pass = pass;
        denseSteps = (int) Math.round(config.denseWarmup() * totalSteps);
        SparsityConfig neurons = config.sparsity();
        AttentionConfig keys = config.attention();
        senseEvery = config.senseEvery();
        mlp = pass.blockChoice() == null ? null : new Lists(pass.blockChoice(), neurons.coverage(), neurons.adjust());
        attention = pass.attentionChoice() == null
                ? null
                : new Lists(pass.attentionChoice(), keys.coverage(), keys.adjust());
    }

    /** Null where a pass has no lists. */
    static @Nullable SparseSteps of(TrainConfig config, ModelPass pass, int totalSteps) {
        return pass.blockChoice() == null && pass.attentionChoice() == null
                ? null
                : new SparseSteps(config, pass, totalSteps);
    }

    /** @param step counted from 1 */
    boolean isSparse(int step) {
        return step > denseSteps;
    }

    boolean senses(int step) {
        return senseEvery > 0 && (step - denseSteps - 1) % senseEvery == 0;
    }

    /** Prepares the measurement of the loaded batch's true coverage. */
    void sense() {
        pass.sense();
    }

    /**
     * Asks for what the step that was enqueued has kept.
     *
     * @param measures whether for its true coverage too: waits for the step, and where asked, adjusts what later steps ask for
     */
    Asked ask(Backend backend, boolean measures) {
        Readback ofMlp = mlp == null ? null : backend.read(mlp.choice.summaries());
        Readback ofAttention = attention == null ? null : backend.read(attention.choice.summaries());
        return new Asked(ofMlp, ofAttention, measures && mlp != null ? mlp.measure() : List.of(),
                measures && attention != null ? attention.measure() : List.of());
    }

    @Nullable
    StepSparsity mlp(Asked asked) {
        return asked.mlp() == null ? null : mlp.told(asked.mlp().floats(), asked.mlpCoverage());
    }

    @Nullable
    StepSparsity attention(Asked asked) {
        return asked.attention() == null ? null : attention.told(asked.attention().floats(), asked.attentionCoverage());
    }

    int mlpTightness() {
        return mlp == null ? 0 : mlp.tightness;
    }

    int attentionTightness() {
        return attention == null ? 0 : attention.tightness;
    }

    void setTightness(int ofMlp, int ofAttention) {
        if (mlp != null) {
            mlp.setTightness(ofMlp);
        }
        if (attention != null) {
            attention.setTightness(ofAttention);
        }
    }
}
