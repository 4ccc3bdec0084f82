package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * h = dropout(x) · aᵀ.
 *
 * @param x [m, in], rows contiguous
 * @param a f32 [r, in], any strides
 * @param h f32 [m, r]: {@code =}
 */
public record LoraProject(
        Tensor x,
        Tensor a,
        @Nullable Dropout dropout,
        Tensor h)
        implements
            Operation {

    @Override
    public long flops() {
        return 2 * x.shape().dim(0) * x.shape().dim(1) * a.shape().dim(0);
    }
}
