package dev.penumbra.model;

/**
 * How large a pass may get.
 *
 * @param tokens most tokens in a batch, over all its rows
 * @param maxSeqlen no sample is longer
 * @param training whether a backward pass follows
 * @param keepsReluMasks whether {@link ModelPass#reluMasks} tells every layer's, which takes a bit for each activation
 */
public record PassShape(int tokens, int maxSeqlen, boolean training, boolean keepsReluMasks) {

    /** Kernels work on blocks of rows: a batch is rounded up to this many, so that few distinct shapes are seen. */
    public static final int ROW_BLOCK = 64;

    /** A batch's eight arrays of a number for each token are counted together by an int. */
    private static final int MOST_TOKENS = 1 << 27;

    /** @throws IllegalArgumentException naming the value that is out of its range */
    public PassShape {
        if (tokens <= 0 || maxSeqlen <= 0) {
            throw new IllegalArgumentException(
                    "expected tokens and maxSeqlen above 0, found " + tokens + " and " + maxSeqlen);
        }
        if (tokens > MOST_TOKENS) {
            throw new IllegalArgumentException("expected at most " + MOST_TOKENS + " tokens in a batch, found " + tokens);
        }
    }

    /** Without keeping masks beside those that a backward pass needs. */
    public PassShape(int tokens, int maxSeqlen, boolean training) {
        this(tokens, maxSeqlen, training, false);
    }

    /**
     * Of batches of so many rows.
     *
     * @throws IllegalArgumentException when they have too many tokens
     */
    public static PassShape ofRows(int rows, int seqLen, boolean training) {
        if ((long) rows * seqLen > MOST_TOKENS) {
            throw new IllegalArgumentException("expected at most " + MOST_TOKENS + " tokens in a batch, found " + rows
                    + " rows of " + seqLen);
        }
        return new PassShape(rows * seqLen, seqLen, training);
    }

    /** Rows that buffers have: {@link #tokens} rounded up to whole {@link #ROW_BLOCK}s. */
    public int capacity() {
        return roundUp(tokens);
    }

    /** The next multiple of {@link #ROW_BLOCK}. */
    public static int roundUp(int rows) {
        return Math.multiplyExact(Math.ceilDiv(rows, ROW_BLOCK), ROW_BLOCK);
    }
}
