package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Gradients of {@link AttentionForward}, for equal query and key borders.
 *
 * @param lse f32 [heads, tokens], from the forward pass
 * @param dO [tokens, heads, head_dim]
 * @param dq [tokens, heads, head_dim]: {@code =}; likewise dk, dv; zero in rows of no sample
 * @param dk null: not asked for, which saves its time
 * @param cuSeqlens i32 [samples + 1]
 * @param blocks whose scores have gradients; null: all. {@code o} and {@code lse} are to be those of a forward pass over the same
 *     lists: from longer ones, or none, a query's score gradients do not add up to zero
 */
public record AttentionBackward(
        float scale,
        Tensor q,
        Tensor k,
        Tensor v,
        Tensor o,
        Tensor lse,
        Tensor dO,
        Tensor dq,
        @Nullable Tensor dk,
        Tensor dv,
        Tensor cuSeqlens,
        long maxSeqlen,
        @Nullable AttentionBlocks blocks,
        @Nullable Tensor workspace)
        implements
            Operation {
}
