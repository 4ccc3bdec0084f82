package dev.penumbra.backend.op;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * The language-model head and its cross-entropy over the supervised rows only; the logits of all rows never exist at once.
 * loss += Σ logsumexp(z) − z[target], z = x[row] · Wᵀ; dx[row] = gradScale · (softmax(z) − onehot(target)) · W, other rows
 * zero.
 *
 * @param x [m, h]
 * @param weight W [vocab, h]
 * @param rows i32 [n], ascending, each once; {@link #NO_ROW} after the last is skipped with its target
 * @param targets i32 [n]
 * @param gradScale f32 [1]; needed with dx
 * @param loss f32 [1]: {@code +=}, the sum, not the mean
 * @param dx [m, h]: {@code =}; null computes the loss only
 */
public record LinearCrossEntropy(
        Tensor x,
        FrozenWeight weight,
        Tensor rows,
        Tensor targets,
        @Nullable Tensor gradScale,
        Tensor loss,
        @Nullable Tensor dx,
        @Nullable Tensor workspace)
        implements
            Operation {

    /** Fills {@code rows} up where fewer are supervised than recorded operations read. */
    public static final int NO_ROW = -1;

    @Override
    public long flops() {
        return (dx == null ? 2 : 4) * rows.shape().dim(0) * weight.form().out() * weight.form().in();
    }
}
