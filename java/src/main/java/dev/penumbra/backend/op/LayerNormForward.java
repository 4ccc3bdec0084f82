package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * y = (x − mean) · rstd · gamma + beta over the last dimension.
 *
 * @param x [m, h], rows contiguous
 * @param gamma f32 [h]
 * @param beta f32 [h]
 * @param y [m, h], dtype of {@code x}, or on the CPU bf16 of an f32 {@code x}: {@code =}; may be {@code x}
 * @param mean f32 [m]: {@code =}; null together with rstd when no backward follows
 * @param rstd f32 [m]: {@code =}
 * @param pooling what else is computed of y on the way; null: nothing
 * @param project adapters of y, each with y as its x, computed in the same pass; null: none
 */
public record LayerNormForward(
        Tensor x,
        Tensor gamma,
        Tensor beta,
        float epsilon,
        Tensor y,
        @Nullable Tensor mean,
        @Nullable Tensor rstd,
        @Nullable Pooling pooling,
        @Nullable LoraProject project)
        implements
            Operation {

    /**
     * Means of y over groups of rows.
     *
     * @param pooled f32 [ceil(m / rows), h]: {@code =}
     * @param rows rows of a group
     * @param validRows i32 [1] on the device: rows from it on are no part of a mean; null: all are
     */
    public record Pooling(Tensor pooled, int rows, @Nullable Tensor validRows) {
    }

    public LayerNormForward(Tensor x, Tensor gamma, Tensor beta, float epsilon, Tensor y, @Nullable Tensor mean,
            @Nullable Tensor rstd) {
        this(x, gamma, beta, epsilon, y, mean, rstd, null, null);
    }

    @Override
    public long flops() {
        return project == null ? 0 : project.flops();
    }
}
