package dev.penumbra.predict;

/**
 * A guess of each block's softmax mass from the rows that a layer's queries and keys are made of, pooled over short groups of
 * tokens: {@link dev.penumbra.backend.op.PredictAttention} tells the formula. Arrays are row-major.
 *
 * @param rank a multiple of 8, at most {@link #MAX_RANK}
 * @param width blocks of the longest sample that it tells distances of
 * @param a [2, heads, rank, hidden]: projections to queries, then to keys
 * @param bias [2, heads, rank]
 * @param distance [heads, width]
 * @param poolRows tokens of a group; divides the block size
 * @param blockSize rows of a block
 */
@SuppressWarnings("ArrayRecordComponent")
public record AttentionPredictor(
        int heads, int rank, int hidden, int width, float[] a, float[] bias, float[] distance, int poolRows, int blockSize) {

    /** What {@code pnb_predict_attention} takes. */
    public static final int MAX_RANK = 64;

    public AttentionPredictor {
        if (rank < 8 || rank > MAX_RANK || rank % 8 != 0) {
            throw new IllegalArgumentException(
                    "expected a rank of 8 to " + MAX_RANK + " that is a multiple of 8, found " + rank);
        }
        if (poolRows < 1 || blockSize % poolRows != 0) {
            throw new IllegalArgumentException(
                    "expected pooled rows that divide blocks of " + blockSize + ", found " + poolRows);
        }
        require("a", a, 2L * heads * rank * hidden);
        require("bias", bias, 2L * heads * rank);
        require("distance", distance, (long) heads * width);
    }

    private static void require(String name, float[] values, long count) {
        if (values.length != count) {
            throw new IllegalArgumentException(
                    "expected " + count + " values of an attention predictor's " + name + ", found " + values.length);
        }
    }

    @Override
    public String toString() {
        return "attention predictor of " + heads + " heads, rank " + rank + ", " + poolRows + " rows pooled, blocks of "
                + blockSize + " in samples of up to " + width;
    }
}
