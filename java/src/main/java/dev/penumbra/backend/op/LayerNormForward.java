package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * y = (x − mean) · rstd · gamma + beta over the last dimension.
 *
 * @param x [m, h], rows contiguous
 * @param gamma f32 [h]
 * @param beta f32 [h]
 * @param y [m, h]: {@code =}; may be {@code x}
 * @param mean f32 [m]: {@code =}; null together with rstd when no backward follows
 * @param rstd f32 [m]: {@code =}
 */
public record LayerNormForward(
        Tensor x,
        Tensor gamma,
        Tensor beta,
        float epsilon,
        Tensor y,
        @Nullable Tensor mean,
        @Nullable Tensor rstd)
        implements
            Operation {
}
