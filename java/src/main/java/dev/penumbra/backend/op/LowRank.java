package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * {@code scale * dropout(h · bᵀ)}, added to the columns {@code [column, column + b.shape[0])} of a product.
 *
 * @param h f32 [m, r]
 * @param b f32 [n_t, r], any strides
 */
public record LowRank(Tensor h, Tensor b, long column, float scale, @Nullable Dropout dropout) {
}
