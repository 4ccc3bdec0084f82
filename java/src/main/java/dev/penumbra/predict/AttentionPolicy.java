package dev.penumbra.predict;

import java.util.Locale;

/** What each head's blocks of keys are chosen by. A block's own keys and those of the sample's first block are always kept. */
public enum AttentionPolicy {
    /** Nothing is chosen: the dense kernels run, within samples' borders. */
    OFF,
    /** All blocks, through the lists: what the others are measured against. */
    ALL,
    /** Every block that may weigh anything, which are all within samples' borders: the dense kernels run. */
    EXACT,
    /** The blocks of the largest true softmax mass. */
    ORACLE,
    /** The blocks of the largest mass that a predictor expects, before the layer's queries and keys exist. */
    PREDICTED,
    /** The blocks of the largest mass over sample text, by their places in a sample: the same in every step. */
    STATIC,
    /** Other blocks in every step, drawn. */
    RANDOM,
    /** The layout of BigBird (Zaheer et al., 2020, arXiv 2007.14062): first blocks, a window, and blocks drawn once. */
    BIGBIRD,
    /** The layout of Longformer (Beltagy et al., 2020, arXiv 2004.05150): the first block and a window. */
    LONGFORMER;

    /** Whether it takes what only calibration knows. */
    public boolean needsCalibration() {
        return this == PREDICTED || this == STATIC;
    }

    /** Whether it reads the true queries and keys. */
    public boolean readsScores() {
        return this == ORACLE;
    }

    /** Whether the dense kernels run. */
    public boolean isDense() {
        return this == OFF || this == EXACT;
    }

    /** Whether blocks are chosen by their mass, or what is expected of it. */
    public boolean readsMass() {
        return this == ORACLE || this == PREDICTED || this == STATIC;
    }

    /** Whether blocks are taken until a coverage is reached. The layouts of papers grow up to the budget without it. */
    public boolean takesCoverage() {
        return readsMass() || this == RANDOM;
    }

    /** Whether a budget bounds the blocks. */
    public boolean takesBudget() {
        return this != ALL && !isDense();
    }

    /**
     * What comes nearest to a policy for MLPs: Long Exposure tunes with BigBird's layout where its rule for neurons runs, and
     * a low-rank guess of attention is what its predictor is.
     */
    public static AttentionPolicy nearest(SelectionPolicy policy) {
        return switch (policy) {
            case OFF -> OFF;
            case ALL -> ALL;
            case EXACT -> EXACT;
            case ORACLE -> ORACLE;
            case PREDICTED, LOW_RANK -> PREDICTED;
            case STATIC -> STATIC;
            case RANDOM -> RANDOM;
            case SEED -> BIGBIRD;
        };
    }

    /** The word of the command line. */
    public String word() {
        return name().toLowerCase(Locale.ROOT);
    }

    @Override
    public String toString() {
        return word();
    }
}
