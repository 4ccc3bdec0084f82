package dev.penumbra.predict;

import org.jspecify.annotations.Nullable;

/**
 * A guess of each block's mass from a layer's MLP input, pooled over short groups of tokens:
 * {@code score[k] = sum over pooled rows p and the units j of k of norms[j] · max(0, (p · aᵀ) · b[j] + bias[j])}.
 *
 * <p>Matrices are row-major, and units are in the order of the neurons' places.
 *
 * @param a [rank, hidden]
 * @param b [units, rank]; a unit is a block, or a neuron
 * @param bias [units]; null: 0
 * @param norms [units]; null: 1
 * @param unitsPerScore 1 where a unit is a block, the block's size where it is a neuron
 * @param poolRows tokens of a group
 */
@SuppressWarnings("ArrayRecordComponent")
public record LowRankPredictor(
        int rank,
        int hidden,
        int units,
        float[] a,
        float[] b,
        float @Nullable [] bias,
        float @Nullable [] norms,
        int unitsPerScore,
        int poolRows) {

    /** What {@code pnb_predict_mass} takes. */
    public static final int MAX_RANK = 128;

    public LowRankPredictor {
        if (rank < 1 || rank > MAX_RANK) {
            throw new IllegalArgumentException("expected a predictor's rank of 1 to " + MAX_RANK + ", found " + rank);
        }
        if (unitsPerScore < 1 || units % unitsPerScore != 0) {
            throw new IllegalArgumentException(
                    "expected units that units per score divide, found " + units + " and " + unitsPerScore);
        }
        if (poolRows < 1) {
            throw new IllegalArgumentException("expected 1 or more rows to pool, found " + poolRows);
        }
        require("a", a, (long) rank * hidden);
        require("b", b, (long) units * rank);
        if (bias != null) {
            require("bias", bias, units);
        }
        if (norms != null) {
            require("norms", norms, units);
        }
    }

    private static void require(String name, float[] values, long count) {
        if (values.length != count) {
            throw new IllegalArgumentException(
                    "expected " + count + " values of a predictor's " + name + ", found " + values.length);
        }
    }

    /** Blocks that it scores. */
    public int blocks() {
        return units / unitsPerScore;
    }

    @Override
    public String toString() {
        return "predictor of " + blocks() + " blocks, rank " + rank + ", " + poolRows + " rows pooled";
    }
}
