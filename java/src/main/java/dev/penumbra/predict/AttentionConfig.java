package dev.penumbra.predict;

import dev.penumbra.predict.SparsityConfig.Pass;
import java.util.Locale;

/**
 * Which blocks of keys the heads of a run attend to, as it is asked for; what layers make of it is
 * {@link AttentionSparsity}'s.
 *
 * @param policy with {@link AttentionPolicy#OFF} nothing else is looked at but for its range
 * @param coverage part of the masses' sum that a head's list of a sample is to cover, above 0, at most 1; 1 where
 *     {@link AttentionPolicy#takesCoverage} says no
 * @param budget largest part of the blocks on and below the diagonal that a layer's lists may hold, above 0, at most 1; 1
 *     where {@link AttentionPolicy#takesBudget} says no
 * @param blockSize rows of a block: 128, or 64 where the backend takes it
 * @param denseWarmup part of the run's steps that come first and are dense, from 0 to 1
 * @param senseEvery steps between those whose true coverage is measured; 0: none is
 * @param adjust whether the coverage that is asked for follows the one that is measured: takes a coverage below 1 and
 *     measurements
 */
public record AttentionConfig(
        AttentionPolicy policy,
        Pass pass,
        double coverage,
        double budget,
        int blockSize,
        double denseWarmup,
        int senseEvery,
        boolean adjust) {

    public static final int DEFAULT_BLOCK = 128;

    /** Dense. */
    public static final AttentionConfig OFF = new AttentionConfig(AttentionPolicy.OFF, Pass.BACKWARD, 1, 1, DEFAULT_BLOCK, 0,
            0, false);

    /** @throws IllegalArgumentException naming the value that is out of its range, or would do nothing */
    public AttentionConfig {
        SparsityConfig.require(blockSize == 64 || blockSize == 128, "attention blocks of 64 or 128 rows", blockSize);
        SparsityConfig.requireRanges(coverage, budget, denseWarmup, senseEvery);
        if (policy != AttentionPolicy.OFF) {
            SparsityConfig.requireChoice("blocks of " + policy.word() + " attention", policy.takesCoverage(),
                    policy.takesBudget(), coverage, budget);
            SparsityConfig.requireAdjustable(coverage, senseEvery, adjust);
        }
    }

    /** The same from the first step on. */
    public AttentionConfig withoutWarmup() {
        return new AttentionConfig(policy, pass, coverage, budget, blockSize, 0, senseEvery, adjust);
    }

    public boolean isOff() {
        return policy == AttentionPolicy.OFF;
    }

    /** What a checkpoint says of it. */
    public String describe() {
        return isOff()
                ? "off"
                : policy.word() + " pass=" + pass.name().toLowerCase(Locale.ROOT) + " coverage=" + coverage + " budget="
                        + budget + " block=" + blockSize + " dense_warmup=" + denseWarmup + " sense_every=" + senseEvery
                        + " adjust=" + adjust;
    }
}
