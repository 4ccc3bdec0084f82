package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * dx = residual + ∂(layer norm)/∂x · dy; gamma and beta are frozen.
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
