package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;

/**
 * How much each block of keys weighs with each block of queries: {@code mass[h, slot of query block i, j]} is the sum over
 * block i's sampled queries and block j's keys of {@code exp(scale · q kᵀ - lse)}; 0 for j above i and in slots of no block.
 *
 * @param q [tokens, heads, head_dim], head_dim contiguous
 * @param k [tokens, heads, head_dim]
 * @param lse f32 [heads, tokens], of a forward pass without lists
 * @param cuSeqlens i32 [samples + 1]
 * @param maxSeqlen no sample is longer
 * @param size rows of a block: 64 or 128
 * @param queryStride from one query of a sample that is looked at to the next; its last one is too; 1: all
 * @param mass f32 [heads, slots, width]: {@code =}
 */
public record AttentionMass(
        float scale,
        Tensor q,
        Tensor k,
        Tensor lse,
        Tensor cuSeqlens,
        long maxSeqlen,
        int size,
        int queryStride,
        Tensor mass)
        implements
            Operation {
}
