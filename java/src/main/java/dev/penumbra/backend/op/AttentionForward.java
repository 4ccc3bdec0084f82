package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * o = softmax(scale · q kᵀ, causal) v within each sample of a packed row; rows of no sample are written zero.
 *
 * @param q [tokens_q, heads, head_dim], head_dim contiguous
 * @param k [tokens_k, heads, head_dim]
 * @param v [tokens_k, heads, head_dim]
 * @param o [tokens_q, heads, head_dim]: {@code =}
 * @param lse f32 [heads, tokens_q]; null when no backward follows
 * @param cuSeqlensQ i32 [samples + 1]
 * @param cuSeqlensK i32 [samples + 1]; the last query of a sample sees all its keys
 * @param maxSeqlen no sample is longer
 * @param blocks what queries see, of equal borders for queries and keys; null: all that they may. A query that sees no key
 *     gets 0
 */
public record AttentionForward(
        float scale,
        Tensor q,
        Tensor k,
        Tensor v,
        Tensor o,
        @Nullable Tensor lse,
        Tensor cuSeqlensQ,
        Tensor cuSeqlensK,
        long maxSeqlen,
        @Nullable AttentionBlocks blocks)
        implements
            Operation {
}
