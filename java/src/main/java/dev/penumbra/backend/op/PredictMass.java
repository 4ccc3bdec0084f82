package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * A low-rank guess of each block's mass from pooled rows: {@code scores[l, k]} is the sum over list l's pooled rows p and the
 * units j of score k of {@code norms[j] · max(0, (pooled[p] · aᵀ) · b[j] + bias[j])}.
 *
 * <p>{@code a}, {@code b}, {@code bias} and {@code norms} are uploaded, not written by operations: they may be read while
 * operations that were enqueued before still run.
 *
 * @param pooled f32 [p, h]
 * @param a f32 [r, h]
 * @param b f32 [units, r]; a unit is a block, or a neuron
 * @param bias f32 [units]; null: 0
 * @param norms f32 [units]; null: 1
 * @param unitsPerScore 1 where a unit is a block, the block's size where it is a neuron
 * @param pooledPerList pooled rows of a list
 * @param scores f32 [lists, units / unitsPerScore]: {@code =}
 */
public record PredictMass(
        Tensor pooled,
        Tensor a,
        Tensor b,
        @Nullable Tensor bias,
        @Nullable Tensor norms,
        int unitsPerScore,
        long pooledPerList,
        Tensor scores,
        @Nullable Tensor workspace)
        implements
            Operation {

    @Override
    public long flops() {
        return 2 * pooled.shape().dim(0) * a.shape().dim(0) * (a.shape().dim(1) + b.shape().dim(0));
    }
}
