package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * dx = residual + ∂(layer norm)/∂x · dy; gamma and beta are frozen. dy, residual and dx have one dtype, that of x, or on the CPU
 * bf16 beside an f32 x.
 *
 * @param residual [m, h]
 * @param dx [m, h]: {@code =}; may be {@code dy} or {@code residual}
 */
public record LayerNormBackward(
        Tensor dy,
        Tensor x,
        Tensor mean,
        Tensor rstd,
        Tensor gamma,
        @Nullable Tensor residual,
        Tensor dx)
        implements
            Operation {
}
