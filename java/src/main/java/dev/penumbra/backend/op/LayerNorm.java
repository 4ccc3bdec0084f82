package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;

/**
 * What {@link LayerNormForward} leaves to those that need its output again: (x − mean) · rstd · gamma + beta.
 *
 * @param mean f32 [m]
 * @param rstd f32 [m]
 * @param gamma f32 [h]
 * @param beta f32 [h]
 */
public record LayerNorm(Tensor mean, Tensor rstd, Tensor gamma, Tensor beta) {
}
