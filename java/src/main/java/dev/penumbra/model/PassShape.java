package dev.penumbra.model;

/**
 * How large a pass may get.
 *
 * @param tokens most tokens in a batch, over all its rows
 * @param maxSeqlen no sample is longer
 * @param training whether a backward pass follows
 */
public record PassShape(int tokens, int maxSeqlen, boolean training) {

    /** Kernels work on blocks of rows: a batch is rounded up to this many, so that few distinct shapes are seen. */
    public static final int ROW_BLOCK = 64;

    public PassShape {
        if (tokens <= 0 || maxSeqlen <= 0) {
            throw new IllegalArgumentException(
                    "expected tokens and maxSeqlen above 0, found " + tokens + " and " + maxSeqlen);
        }
    }

    public int capacity() {
        return roundUp(tokens);
    }

    public static int roundUp(int rows) {
        return Math.multiplyExact(Math.ceilDiv(rows, ROW_BLOCK), ROW_BLOCK);
    }
}
