package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * A low-rank guess of {@link AttentionMass} from rows pooled along the batch: each pooled row is projected to a query and a
 * key of r dimensions a head, their products and a term for their blocks' distance are scores, and a softmax over the earlier
 * pooled rows of the sample makes masses of them.
 *
 * @param pooled f32 [ceil(tokens / poolRows), hidden]
 * @param poolRows rows that are pooled; divides size
 * @param a bf16 [2, heads, r, hidden]: projections to queries, then to keys
 * @param bias f32 [2, heads, r]
 * @param distance f32 [heads, width]: added to scores of blocks so far apart
 * @param cuSeqlens i32 [samples + 1]
 * @param tokens of the batch
 * @param maxSeqlen no sample is longer
 * @param size rows of a block: 64 or 128
 * @param mass f32 [heads, slots, width]: {@code =}
 */
public record PredictAttention(
        Tensor pooled,
        int poolRows,
        Tensor a,
        Tensor bias,
        Tensor distance,
        Tensor cuSeqlens,
        long tokens,
        long maxSeqlen,
        int size,
        Tensor mass,
        @Nullable Tensor workspace)
        implements
            Operation {

    @Override
    public long flops() {
        return 2 * pooled.shape().dim(0) * a.shape().size();
    }
}
