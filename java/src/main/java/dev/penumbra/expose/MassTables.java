package dev.penumbra.expose;

import java.util.Arrays;

/**
 * What one layer's heads weigh by the places of blocks in a sample, over sample text.
 *
 * @param mean [heads, width, width]: the mean part of query block i's mass on key block j
 * @param highest [heads, width, width]: the largest part that any sample had
 */
@SuppressWarnings("ArrayRecordComponent")
record MassTables(float[] mean, float[] highest) {

    /**
     * Of the samples with these indices. Where no sample is so long, a block counts as much as those at its distance from the
     * diagonal do, or the farthest known; key block 0 as in the longest.
     */
    static MassTables of(AttentionUse use, int layer, int heads, int width, int[] samples) {
        float[] mean = new float[heads * width * width];
        float[] highest = new float[mean.length];
        for (int head = 0; head < heads; head++) {
            double[] sums = new double[width * width];
            double[] weights = new double[width];
            int seen = 0;
            for (int s : samples) {
                int n = use.shapes().get(s).blocks();
                float[] mass = use.mass(layer, s, head);
                seen = Math.max(seen, n);
                for (int i = 0; i < n; i++) {
                    double row = 0;
                    for (int j = 0; j <= i; j++) {
                        row += mass[i * n + j];
                    }
                    weights[i] += row;
                    for (int j = 0; j <= i && row > 0; j++) {
                        sums[i * width + j] += mass[i * n + j];
                        int at = (head * width + i) * width + j;
                        highest[at] = Math.max(highest[at], (float) (mass[i * n + j] / row));
                    }
                }
            }
            for (int i = 0; i < seen; i++) {
                for (int j = 0; j <= i; j++) {
                    mean[(head * width + i) * width + j] = weights[i] == 0 ? 0 : (float) (sums[i * width + j] / weights[i]);
                }
            }
            extend(mean, head * width * width, width, seen);
            extend(highest, head * width * width, width, seen);
        }
        return new MassTables(mean, highest);
    }

    private static void extend(float[] table, int at, int width, int seen) {
        float[] byDistance = new float[width];
        for (int distance = 0; distance < seen - 1; distance++) {
            double sum = 0;
            for (int i = distance + 1; i < seen; i++) {
                sum += table[at + i * width + i - distance];
            }
            byDistance[distance] = (float) (sum / (seen - 1 - distance));
        }
        Arrays.fill(byDistance, Math.max(0, seen - 1), width, seen > 1 ? byDistance[seen - 2] : 0);
        for (int i = seen; i < width; i++) {
            table[at + i * width] = seen == 0 ? 0 : table[at + (seen - 1) * width];
            for (int j = 1; j <= i; j++) {
                table[at + i * width + j] = byDistance[i - j];
            }
        }
    }

    /** A head's mean: [width, width]. */
    float[] mean(int head, int width) {
        return Arrays.copyOfRange(mean, head * width * width, (head + 1) * width * width);
    }

    /** The upper left part of a table: [blocks, blocks]. */
    static float[] prefix(float[] table, int width, int blocks) {
        float[] part = new float[blocks * blocks];
        for (int i = 0; i < blocks; i++) {
            System.arraycopy(table, i * width, part, i * blocks, blocks);
        }
        return part;
    }
}
