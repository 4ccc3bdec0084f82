package dev.penumbra.predict;

import java.util.Locale;

/**
 * Which blocks of MLP neurons a run computes, as it is asked for; what layers make of it is {@link MlpSparsity}'s.
 *
 * @param policy with {@link SelectionPolicy#OFF} nothing else is looked at but for its range
 * @param coverage part of the scores' sum that a list is to cover, above 0, at most 1: blocks are taken by falling score
 *     until then; 1 where {@link SelectionPolicy#takesCoverage} says no
 * @param budget largest part of the blocks that a list may hold, above 0, at most 1; 1 where
 *     {@link SelectionPolicy#takesBudget} says no
 * @param blockSize neighbouring neurons that are kept or dropped together: 32, 64 or 128
 * @param rowsPerList tokens that share a list: a multiple of 128, or 0 for the whole batch, as {@link SelectionPolicy#SEED}
 *     has it always
 * @param denseWarmup part of the run's steps that come first and are dense, from 0 to 1
 * @param senseEvery steps between those whose true coverage is measured; 0: none is
 * @param adjust whether the coverage that is asked for follows the one that is measured: takes a coverage below 1 and
 *     measurements
 */
public record SparsityConfig(
        SelectionPolicy policy,
        Pass pass,
        double coverage,
        double budget,
        int blockSize,
        int rowsPerList,
        double denseWarmup,
        int senseEvery,
        boolean adjust) {

    /** Which of a step's products skip blocks. */
    public enum Pass {
        /** Forward and backward, by one list from before the layer runs. */
        BOTH,
        /** Backward alone: the forward pass is exact, and its activations say which blocks the gradient needs. */
        BACKWARD
    }

    /** Dense. */
    public static final SparsityConfig OFF = new SparsityConfig(SelectionPolicy.OFF, Pass.BACKWARD, 1, 1, 128, 0, 0, 0,
            false);

    /** @throws IllegalArgumentException naming the value that is out of its range, or would do nothing */
    public SparsityConfig {
        require(blockSize == 32 || blockSize == 64 || blockSize == 128, "blocks of 32, 64 or 128 neurons", blockSize);
        require(rowsPerList >= 0 && rowsPerList % 128 == 0, "rows of a list that are a multiple of 128, or 0", rowsPerList);
        require(policy != SelectionPolicy.SEED || rowsPerList == 0,
                "one list for the whole batch, 0 rows per list, for seed blocks",
                rowsPerList);
        requireRanges(coverage, budget, denseWarmup, senseEvery);
        if (policy != SelectionPolicy.OFF) {
            requireChoice(policy.word() + " blocks", policy.takesCoverage(), policy.takesBudget(), coverage, budget);
            requireAdjustable(coverage, senseEvery, adjust);
        }
    }

    /** Of MLPs and of attention alike. */
    static void requireRanges(double coverage, double budget, double denseWarmup, int senseEvery) {
        require(coverage > 0 && coverage <= 1, "a coverage above 0, at most 1", coverage);
        require(budget > 0 && budget <= 1, "a budget above 0, at most 1", budget);
        require(denseWarmup >= 0 && denseWarmup <= 1, "a dense warm-up from 0 to 1", denseWarmup);
        require(senseEvery >= 0, "steps between measurements of 0 or more", senseEvery);
    }

    /** What bounds nothing is not to be asked for, and something is to bound what has no rule of its own. */
    static void requireChoice(String of, boolean takesCoverage, boolean takesBudget, double coverage, double budget) {
        require(takesCoverage || coverage == 1, "a coverage of 1 for " + of + ", which are not chosen by one", coverage);
        require(takesBudget || budget == 1, "a budget of 1 for " + of + ", which are not bounded by one", budget);
        if (takesCoverage && coverage == 1 && budget == 1) {
            throw new IllegalArgumentException("expected a coverage or a budget below 1 for " + of
                    + ", found both 1: nothing would be left out");
        }
    }

    static void requireAdjustable(double coverage, int senseEvery, boolean adjust) {
        if (adjust && senseEvery == 0) {
            throw new IllegalArgumentException("expected measurements that a coverage is adjusted by, found none");
        }
        require(!adjust || coverage < 1, "a coverage below 1 that is adjusted", coverage);
    }

    static void require(boolean holds, String expected, Object found) {
        if (!holds) {
            throw new IllegalArgumentException("expected " + expected + ", found " + found);
        }
    }

    /** The same from the first step on. */
    public SparsityConfig withoutWarmup() {
        return new SparsityConfig(policy, pass, coverage, budget, blockSize, rowsPerList, 0, senseEvery, adjust);
    }

    public boolean isOff() {
        return policy == SelectionPolicy.OFF;
    }

    /** What a checkpoint says of it. */
    public String describe() {
        return isOff()
                ? "off"
                : policy.word() + " pass=" + pass.name().toLowerCase(Locale.ROOT) + " coverage=" + coverage
                        + " budget=" + budget + " block=" + blockSize + " rows_per_list=" + rowsPerList + " dense_warmup="
                        + denseWarmup + " sense_every=" + senseEvery + " adjust=" + adjust;
    }
}
