package dev.penumbra.expose;

import dev.penumbra.sparse.BlockPattern;
import org.jspecify.annotations.Nullable;

/** Adds up, over samples and heads, what each policy's choice of blocks at one budget holds of the true mass. */
final class AttentionCoverageSum {

    private final double budget;
    private double total;
    private double causal;
    private double kept;
    private double always;
    private double oracle;
    private double predicted;
    private double fixed;
    private double pool;
    private double bigBird;
    private double longformer;
    private double random;
    private boolean hasPrediction = true;
    private boolean chooses;

    AttentionCoverageSum(double budget) {
        this.budget = budget;
    }

    /**
     * Adds one head's sample.
     *
     * @param mass true: [blocks, blocks]
     * @param prediction [blocks, blocks]; null: there is no predictor
     * @param table [width, width]: the head's means
     * @param layout the head's, out of the pool
     */
    void add(float[] mass, int blocks, float @Nullable [] prediction, float[] table, BlockPattern layout) {
        double sum = 0;
        double inAlways = 0;
        for (int i = 0; i < blocks; i++) {
            for (int j = 0; j <= i; j++) {
                sum += mass[i * blocks + j];
                inAlways += AttentionChoice.isAlways(i, j) ? mass[i * blocks + j] : 0;
            }
        }
        int most = AttentionChoice.most(blocks, budget);
        int free = AttentionChoice.causal(blocks) - AttentionChoice.always(blocks);
        int taken = most - AttentionChoice.always(blocks);
        total += sum;
        causal += AttentionChoice.causal(blocks);
        kept += most;
        always += inAlways;
        chooses |= taken > 0 && taken < free;
        oracle += covered(mass, mass, blocks);
        hasPrediction &= prediction != null;
        predicted += prediction == null ? 0 : covered(mass, prediction, blocks);
        float[] means = MassTables.prefix(table, layout.width(), blocks);
        fixed += covered(mass, means, blocks);
        float[] pooled = new float[means.length];
        float[] near = new float[means.length];
        double beside = 0;
        int besides = 0;
        for (int i = 0; i < blocks; i++) {
            for (int j = 0; j <= i; j++) {
                int at = i * blocks + j;
                // Where a layout is larger than the budget, which happens in short samples, its heaviest blocks are taken.
                pooled[at] = layout.keeps(i, j) ? 1 + means[at] : 0;
                near[at] = 1f / (1 + i - j);
                if (i - j == 1 && j > 0 && besides < taken) {
                    beside += mass[at];
                    besides++;
                }
            }
        }
        pool += covered(mass, pooled, blocks);
        longformer += covered(mass, near, blocks);
        // What choices by lot hold on the average.
        random += inAlways + (free == 0 ? 0 : (sum - inAlways) * taken / free);
        int drawnFrom = free - besides;
        bigBird += inAlways + beside
                + (drawnFrom == 0 ? 0 : (sum - inAlways - beside) * (taken - besides) / drawnFrom);
    }

    private double covered(float[] mass, float[] scores, int blocks) {
        return AttentionChoice.covered(mass, AttentionChoice.choose(scores, blocks, 1, budget));
    }

    /** Adds what another sum has. */
    void add(AttentionCoverageSum other) {
        total += other.total;
        causal += other.causal;
        kept += other.kept;
        always += other.always;
        oracle += other.oracle;
        predicted += other.predicted;
        fixed += other.fixed;
        pool += other.pool;
        bigBird += other.bigBird;
        longformer += other.longformer;
        random += other.random;
        hasPrediction &= other.hasPrediction;
        chooses |= other.chooses;
    }

    Manifest.AttentionCoverage figures() {
        double all = total == 0 ? 1 : total;
        return new Manifest.AttentionCoverage(causal == 0 ? 1 : kept / causal, chooses, always / all, oracle / all,
                hasPrediction ? predicted / all : null, fixed / all, pool / all, bigBird / all, longformer / all,
                random / all);
    }
}
