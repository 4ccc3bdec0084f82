package dev.penumbra.predict;

import java.util.Arrays;

/**
 * The thin maps of one head, in its own space: pooled rows with queries q and keys k have the scores
 * {@code e(g, g') = (Pq q[g] + bq) · (Pk k[g'] + bk) + distance[block of g - block of g']}, and a softmax over the earlier rows
 * makes parts of a query's mass of them. Folded into the layer's weights it is one head of an {@link AttentionPredictor}.
 *
 * @param pq [rank, headDim]
 * @param pk [rank, headDim]
 * @param bq [rank]
 * @param bk [rank]
 * @param distance [width], by how many blocks lie between
 */
@SuppressWarnings("ArrayRecordComponent")
public record AttentionHeadMap(int rank, int headDim, float[] pq, float[] pk, float[] bq, float[] bk, float[] distance) {

    public AttentionHeadMap {
        if (pq.length != rank * headDim || pk.length != rank * headDim || bq.length != rank || bk.length != rank) {
            throw new IllegalArgumentException("expected maps of " + rank + " x " + headDim + " with biases of " + rank
                    + ", found " + pq.length + " and " + pk.length + " with " + bq.length + " and " + bk.length);
        }
    }

    /**
     * What {@code pnb_predict_attention} gives for this head and sample: [blocks, blocks].
     *
     * @param poolRows rows of a pooled row
     */
    public float[] masses(PooledAttention sample, int poolRows) {
        int pools = sample.pools();
        float[] zq = projected(pq, bq, sample.q(), pools);
        float[] zk = projected(pk, bk, sample.k(), pools);
        int n = sample.blocks();
        float[] mass = new float[n * n];
        float[] e = new float[pools];
        for (int g = 0; g < pools; g++) {
            softmax(zq, zk, rank, g, pools, sample.blockOf(), distance, e, 0);
            int row = sample.blockOf()[g] * n;
            for (int other = 0; other <= g; other++) {
                mass[row + sample.blockOf()[other]] += poolRows * e[other];
            }
        }
        // A last block that is too short for a pooled row of its own: e still holds the nearest one's.
        int last = sample.blockOf()[pools - 1];
        for (int i = last + 1; i < n; i++) {
            for (int other = 0; other < pools; other++) {
                mass[i * n + sample.blockOf()[other]] += poolRows * e[other];
            }
        }
        return mass;
    }

    /** z [rank, pools] = P xᵀ + b: pooled rows lie next to one another, for the loops over them. */
    private float[] projected(float[] p, float[] b, float[] x, int pools) {
        float[] xt = new float[headDim * pools];
        for (int g = 0; g < pools; g++) {
            for (int d = 0; d < headDim; d++) {
                xt[d * pools + g] = x[g * headDim + d];
            }
        }
        float[] z = new float[rank * pools];
        project(p, b, xt, z, rank, headDim, pools);
        return z;
    }

    static void project(float[] p, float[] b, float[] xt, float[] z, int rank, int headDim, int pools) {
        for (int r = 0; r < rank; r++) {
            Arrays.fill(z, r * pools, (r + 1) * pools, b[r]);
            for (int d = 0; d < headDim; d++) {
                Matrix.addRow(p[r * headDim + d], xt, d * pools, z, r * pools, pools);
            }
        }
    }

    /**
     * e[at + i] = softmax over the rows i up to {@code g} of the scores of row {@code g} with them.
     *
     * @param zq [rank, pools]
     * @param zk [rank, pools]
     */
    static void softmax(float[] zq, float[] zk, int rank, int g, int pools, int[] blockOf, float[] distance, float[] e,
            int at) {
        int count = g + 1;
        for (int i = 0; i < count; i++) {
            e[at + i] = distance[blockOf[g] - blockOf[i]];
        }
        for (int r = 0; r < rank; r++) {
            Matrix.addRow(zq[r * pools + g], zk, r * pools, e, at, count);
        }
        float largest = Float.NEGATIVE_INFINITY;
        for (int i = 0; i < count; i++) {
            largest = Math.max(largest, e[at + i]);
        }
        float sum = 0;
        for (int i = 0; i < count; i++) {
            e[at + i] = (float) Math.exp(e[at + i] - largest);
            sum += e[at + i];
        }
        for (int i = 0; i < count; i++) {
            e[at + i] /= sum;
        }
    }
}
