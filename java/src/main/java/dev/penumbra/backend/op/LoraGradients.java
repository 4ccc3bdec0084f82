package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * dh = scaling · dy · B; dB += scaling · dyᵀ · h; dA += dhᵀ · dropout(x).
 *
 * @param dy [m, out], rows contiguous; a column range of a wider tensor is fine
 * @param x [m, in], rows contiguous
 * @param h f32 [m, r], from {@link LoraProject}
 * @param a f32 [r, in]
 * @param b f32 [out, r]
 * @param dropout as in the forward pass
 * @param dh f32 [m, r]: {@code =}
 * @param da f32 [r, in]: {@code +=}
 * @param db f32 [out, r]: {@code +=}
 */
public record LoraGradients(
        float scaling,
        Tensor dy,
        Tensor x,
        Tensor h,
        Tensor a,
        Tensor b,
        @Nullable Dropout dropout,
        Tensor dh,
        Tensor da,
        Tensor db,
        @Nullable Tensor workspace)
        implements
            Operation {

    @Override
    public long flops() {
        long m = x.shape().dim(0);
        long r = a.shape().dim(0);
        return 4 * m * r * dy.shape().dim(1) + 2 * m * r * x.shape().dim(1);
    }
}
