package dev.penumbra.train;

import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.model.BlockChoice;
import dev.penumbra.model.ModelPass;
import dev.penumbra.predict.SparsityConfig;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** When a run's steps are sparse, what they tell of it, and how what is asked of the lists follows what is measured. */
final class SparseSteps {

    /** Differences below this are left alone: they are smaller than those between batches. */
    private static final double TOLERANCE = 0.005;
    /** Each step asks for a graph of its own to be recorded: few, and none that asks for practically everything. */
    private static final int LEAST_TIGHTNESS = -4;

    private static final int MOST_TIGHTNESS = 8;

    private final SparsityConfig config;
    private final BlockChoice choice;
    private final int denseSteps;
    private int tightness;

    SparseSteps(SparsityConfig config, ModelPass pass, int totalSteps) {
        this.config = config;
        this.choice = pass.blockChoice();
        this.denseSteps = (int) Math.round(config.denseWarmup() * totalSteps);
    }

    /** @param step counted from 1 */
    boolean isSparse(int step) {
        return step > denseSteps;
    }

    boolean senses(int step) {
        return config.senseEvery() > 0 && (step - denseSteps - 1) % config.senseEvery() == 0;
    }

    /**
     * The true coverage of the step that was enqueued, by layer; waits for it. Where asked, adjusts what later steps ask for.
     */
    List<Double> measure() {
        List<Double> coverage = Arrays.stream(choice.coverage()).boxed().toList();
        if (config.adjust() && config.coverage() < 1) {
            double mean = meanOfSparse(coverage);
            if (mean < config.coverage() - TOLERANCE) {
                setTightness(Math.min(MOST_TIGHTNESS, tightness + 1));
            } else if (mean > config.coverage() + TOLERANCE) {
                setTightness(Math.max(LEAST_TIGHTNESS, tightness - 1));
            }
        }
        return coverage;
    }

    private double meanOfSparse(List<Double> coverage) {
        double sum = 0;
        int count = 0;
        for (int i = 0; i < coverage.size(); i++) {
            if (choice.isSparse(i)) {
                sum += coverage.get(i);
                count++;
            }
        }
        return count == 0 ? 1 : sum / count;
    }

    int tightness() {
        return tightness;
    }

    void setTightness(int steps) {
        tightness = steps;
        choice.tighten(steps);
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
