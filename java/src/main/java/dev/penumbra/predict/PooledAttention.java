package dev.penumbra.predict;

/**
 * What one head did with one sample: pooled rows of the base model's queries and keys, and the mass of each pair of blocks.
 *
 * @param blocks of the sample
 * @param blockOf the block that each pooled row belongs to, ascending; a short last block may have none
 * @param q [pools, headDim]: means of queries, by the base weights
 * @param k [pools, headDim]: means of keys
 * @param mass [blocks, blocks]: of query block i on key block j, 0 above the diagonal; a row adds up to the number of the
 *     block's queries that were looked at
 */
@SuppressWarnings("ArrayRecordComponent")
public record PooledAttention(int blocks, int[] blockOf, float[] q, float[] k, float[] mass) {

    public PooledAttention {
        if (blockOf.length == 0 || q.length != k.length || q.length % blockOf.length != 0) {
            throw new IllegalArgumentException(
                    "expected queries and keys of 1 pooled row or more, found " + q.length + " and "
                            + k.length + " values of " + blockOf.length + " rows");
        }
        if (mass.length != blocks * blocks) {
            throw new IllegalArgumentException(
                    "expected masses of " + blocks + " x " + blocks + " blocks, found " + mass.length);
        }
        int previous = 0;
        for (int block : blockOf) {
            if (block < previous || block >= blocks) {
                throw new IllegalArgumentException(
                        "expected pooled rows in blocks that ascend below " + blocks + ", found " + block + " after "
                                + previous);
            }
            previous = block;
        }
    }

    public int pools() {
        return blockOf.length;
    }

    public int headDim() {
        return q.length / blockOf.length;
    }

    /** The part of all that query block {@code i} weighs which lies on key block {@code j}. */
    float part(int i, int j) {
        float rows = weight(i);
        return rows == 0 ? 0 : mass[i * blocks + j] / rows;
    }

    /** What query block {@code i} weighs in all. */
    float weight(int i) {
        float sum = 0;
        for (int j = 0; j <= i; j++) {
            sum += mass[i * blocks + j];
        }
        return sum;
    }
}
