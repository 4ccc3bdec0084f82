package dev.penumbra.data;

import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * The rows of one micro-batch, concatenated: samples lie one after another and attention never crosses a border.
 *
 * @param ids tokens, padding included
 * @param positions of each token within its sample, from 0
 * @param cuSeqlens samples + 1 borders, ascending from 0; tokens after the last border belong to no sample
 * @param rows tokens whose successor is supervised, ascending
 * @param targets the token that each of {@code rows} should predict
 * @param maxSeqlen the longest sample
 * @param realTokens tokens that are not padding
 */
public record Batch(int[] ids, int[] positions, int[] cuSeqlens, int[] rows, int[] targets, int maxSeqlen, int realTokens) {

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
}
