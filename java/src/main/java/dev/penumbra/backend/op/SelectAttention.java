package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Chooses blocks for each head of each sample: the diagonal and key block 0 always, then by falling mass until
 * {@code coverage} times the sum of all is kept, at most the head's budget of the blocks on and below the diagonal.
 *
 * @param mass f32 [heads, slots, width]; null with {@code table}
 * @param table f32 [heads, width, width]: the mass of query block i and key block j of any sample; null with {@code mass}
 * @param budgets f32 [heads]: largest part of the blocks; null: all
 * @param coverage above 0, at most 1: every block that has a mass
 * @param cuSeqlens i32 [samples + 1]
 * @param tokens of the batch
 * @param maxSeqlen no sample is longer
 * @param blocks all its lists: {@code =}
 * @param summary f32 [{@link SelectBlocks#SUMMARY_SIZE}]: {@code =} as for {@link SelectBlocks}; a list is a head of a sample
 */
public record SelectAttention(
        @Nullable Tensor mass,
        @Nullable Tensor table,
        @Nullable Tensor budgets,
        float coverage,
        Tensor cuSeqlens,
        long tokens,
        long maxSeqlen,
        AttentionBlocks blocks,
        @Nullable Tensor summary,
        @Nullable Tensor workspace)
        implements
            Operation {
}
