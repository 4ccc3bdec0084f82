package dev.penumbra.data;

import dev.penumbra.internal.Counted;
import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * The rows of one micro-batch, concatenated: samples lie one after another and attention never crosses a border. What kernels
 * index with is checked here, for they do not.
 *
 * @param ids tokens, padding included
 * @param positions of each token within its sample, from 0
 * @param cuSeqlens samples + 1 borders, ascending from 0; tokens after the last border belong to no sample
 * @param rows tokens whose successor is supervised, ascending
 * @param targets the token that each of {@code rows} should predict
 * @param maxSeqlen the longest sample
 * @param realTokens tokens of the samples, so without padding, and with those left out because nothing is predicted from them
 */
public record Batch(int[] ids, int[] positions, int[] cuSeqlens, int[] rows, int[] targets, int maxSeqlen, int realTokens) {

    public Batch {
        if (positions.length != ids.length || targets.length != rows.length) {
            throw new IllegalArgumentException("expected a position for each of " + ids.length
                    + " tokens and a target for each of " + rows.length + " rows, found " + positions.length + " and "
                    + targets.length);
        }
        if (cuSeqlens.length == 0 || cuSeqlens[0] != 0) {
            throw new IllegalArgumentException("expected borders that ascend from 0, found "
                    + (cuSeqlens.length == 0 ? "none" : "a first one of " + cuSeqlens[0]));
        }
        for (int s = 1; s < cuSeqlens.length; s++) {
            int length = cuSeqlens[s] - cuSeqlens[s - 1];
            if (length < 0 || length > maxSeqlen || cuSeqlens[s] > ids.length) {
                throw new IllegalArgumentException("expected a sample " + (s - 1) + " of at most " + maxSeqlen
                        + " tokens, the longest sample's, that ends within " + ids.length + ", found one from "
                        + cuSeqlens[s - 1] + " to " + cuSeqlens[s]);
            }
        }
        for (int i = 0; i < rows.length; i++) {
            if (rows[i] < 0 || rows[i] >= ids.length || i > 0 && rows[i] <= rows[i - 1]) {
                throw new IllegalArgumentException("expected rows ascending within [0, " + ids.length + "), found " + rows[i]
                        + " at " + i);
            }
        }
    }

    /** One sample, without padding. */
    public static Batch of(Sample sample) {
        int n = sample.length();
        int[] rows = IntStream.range(1, n).filter(i -> sample.supervised()[i]).map(i -> i - 1).toArray();
        int[] targets = Arrays.stream(rows).map(row -> sample.ids()[row + 1]).toArray();
        return new Batch(sample.ids(), IntStream.range(0, n).toArray(), new int[]{0, n}, rows, targets, n, n);
    }

    public int tokens() {
        return ids.length;
    }

    public int samples() {
        return cuSeqlens.length - 1;
    }

    @Override
    public String toString() {
        return "batch of " + Counted.of(samples(), "sample") + " of " + Counted.of(realTokens, "token") + ", " + tokens()
                + " to compute, the longest of " + maxSeqlen + ", " + rows.length + " supervised";
    }
}
