package dev.penumbra.predict;

import java.util.Locale;

/** What a layer's blocks of neurons are chosen by. */
public enum SelectionPolicy {
    /** Nothing is chosen: the dense products run. */
    OFF,
    /** All blocks, through the lists: what the others are measured against. */
    ALL,
    /** Every block that the batch uses at all, by its true activations. */
    EXACT,
    /** The blocks of the largest true mass. */
    ORACLE,
    /** The blocks of the largest mass that a predictor expects, before the layer runs. */
    PREDICTED,
    /** The blocks of the largest mass over sample text, or of the largest weights: the same in every step. */
    STATIC,
    /** Other blocks in every step, drawn. */
    RANDOM,
    /** Long Exposure's rule: a block is dropped when nearly all its neurons lie far below its own largest. */
    SEED,
    /** The blocks of the largest mass by a low-rank approximation of fc1, which nobody trained. */
    LOW_RANK;

    /** Whether it takes what only calibration knows. */
    public boolean needsCalibration() {
        return this == PREDICTED || this == LOW_RANK;
    }

    /** Whether it reads the true activations. */
    public boolean readsActivations() {
        return this == EXACT || this == ORACLE || this == SEED;
    }

    /**
     * Whether blocks are taken until a coverage is reached. Without it, {@link #EXACT} and {@link #SEED} take what their rules
     * give, as far as the budget goes.
     */
    public boolean takesCoverage() {
        return this == ORACLE || this == PREDICTED || this == STATIC || this == RANDOM || this == LOW_RANK;
    }

    /** Whether a budget bounds the blocks. */
    public boolean takesBudget() {
        return this != OFF && this != ALL;
    }

    /** The word of the command line: low-rank. */
    public String word() {
        return name().toLowerCase(Locale.ROOT).replace('_', '-');
    }

    @Override
    public String toString() {
        return word();
    }
}
