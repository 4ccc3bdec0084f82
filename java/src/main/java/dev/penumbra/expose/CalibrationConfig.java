package dev.penumbra.expose;

import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.LowRankPredictor;

/**
 * How a model is calibrated.
 *
 * @param batches most batches that orders and predictors are made from; fewer where the text has fewer
 * @param heldOutBatches most batches of other text that figures are measured on
 * @param batchSize rows of a batch
 * @param seqLen tokens of a row
 * @param blockSize neurons of a block
 * @param listRows neighbouring tokens whose blocks are looked at together, beside those of whole batches
 * @param poolRows tokens over which a predictor's input is averaged
 * @param rank of the predictors
 * @param coverage part of the mass that is to be kept, for the figures
 * @param budget part of the blocks that may be kept: what orders are compared at
 * @param epochs of a predictor's training
 * @param noise what perturbs a predictor's inputs in training, as a part of their own deviation
 * @param drift largest size of the random adapters that some batches run with, as a part of the weights'
 * @param attention how attention is looked at
 */
public record CalibrationConfig(
        int batches,
        int heldOutBatches,
        int batchSize,
        int seqLen,
        int blockSize,
        int listRows,
        int poolRows,
        int rank,
        double coverage,
        double budget,
        int epochs,
        double noise,
        double drift,
        long seed,
        Attention attention) {

    /**
     * How attention is looked at.
     *
     * @param blockSize rows of a block: 64 or 128; 0: not at all
     * @param poolRows rows over which a predictor's input is averaged; divides the block size
     * @param rank of the predictors: a multiple of 8
     * @param budget part of the blocks on and below the diagonal that layouts and predictors are compared at
     */
    public record Attention(int blockSize, int poolRows, int rank, double budget) {

        /** The command line's. */
        public static final Attention DEFAULT = new Attention(128, 32, 16, 0.3);

        public static final Attention NONE = new Attention(0, 32, 16, 0.3);

        public Attention {
            require(blockSize == 0 || blockSize == 64 || blockSize == 128,
                    "attention blocks of 64 or 128 tokens, or 0 for none",
                    blockSize);
            require(poolRows >= 1 && blockSize % poolRows == 0,
                    "pooled rows of attention that divide blocks of " + blockSize, poolRows);
            require(rank >= 8 && rank <= AttentionPredictor.MAX_RANK && rank % 8 == 0,
                    "a rank for attention of 8 to " + AttentionPredictor.MAX_RANK + " that is a multiple of 8", rank);
            require(budget > 0 && budget <= 1, "a budget for attention above 0, at most 1", budget);
        }
    }

    /** Rows of a list that kernels take are a multiple of it. */
    private static final int LIST_ROWS = 128;

    public CalibrationConfig {
        require(batches >= 1, "1 batch or more", batches);
        require(heldOutBatches >= 1, "1 held-out batch or more", heldOutBatches);
        require(batchSize >= 1, "a batch size of 1 or more", batchSize);
        require(seqLen >= 2, "a sequence length of 2 or more", seqLen);
        require(blockSize == 32 || blockSize == 64 || blockSize == 128, "blocks of 32, 64 or 128 neurons", blockSize);
        require(poolRows >= 1, "1 or more rows to pool", poolRows);
        require(listRows > 0 && listRows % LIST_ROWS == 0 && listRows % poolRows == 0,
                "rows of a list that are a multiple of " + LIST_ROWS + " and of the " + poolRows + " that are pooled",
                listRows);
        require(rank >= 1 && rank <= LowRankPredictor.MAX_RANK, "a rank of 1 to " + LowRankPredictor.MAX_RANK, rank);
        require(coverage > 0 && coverage <= 1, "a coverage above 0, at most 1", coverage);
        require(budget > 0 && budget <= 1, "a budget above 0, at most 1", budget);
        require(epochs >= 0, "epochs of 0 or more", epochs);
        require(noise >= 0 && Double.isFinite(noise), "noise of 0 or more", noise);
        require(drift >= 0 && Double.isFinite(drift), "a drift of 0 or more", drift);
    }

    /** With the command line's defaults for attention. */
    public CalibrationConfig(int batches, int heldOutBatches, int batchSize, int seqLen, int blockSize, int listRows,
            int poolRows, int rank, double coverage, double budget, int epochs, double noise, double drift, long seed) {
        this(batches, heldOutBatches, batchSize, seqLen, blockSize, listRows, poolRows, rank, coverage, budget, epochs,
                noise,
                drift, seed, Attention.DEFAULT);
    }

    private static void require(boolean holds, String expected, Object found) {
        if (!holds) {
            throw new IllegalArgumentException("expected " + expected + ", found " + found);
        }
    }

    /** The command line's defaults, for rows of this size. */
    public static CalibrationConfig of(int batchSize, int seqLen) {
        return new CalibrationConfig(32, 8, batchSize, seqLen, 32, 256, 16, 64, 0.99, 0.5, 8, 0.05, 0.1, 42);
    }

    /** Blocks that the budget allows out of so many. */
    int kept(int blocks) {
        return Math.max(1, (int) Math.round(budget * blocks));
    }
}
