package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * dh = scaling · dy · B; dB += scaling · dyᵀ · h; dA += dhᵀ · dropout(x), or dA += dhᵀ · dropout(norm(x)).
 *
 * @param dy [m, out], rows contiguous; a column range of a wider tensor is fine; dtype of {@code x}, or on the CPU bf16 beside
 *     an f32 {@code x}
 * @param x [m, in], rows contiguous
 * @param h f32 [m, r], from {@link LoraProject}
 * @param a f32 [r, in]
 * @param b f32 [out, r]
 * @param dropout as in the forward pass
 * @param norm over x, which has no blocks then; null: x itself is the adapters' input
 * @param dh f32 [m, r]: {@code =}
 * @param da f32 [r, in]: {@code +=}
 * @param db f32 [out, r]: {@code +=}
 * @param xBlocks x is compact, a and da are not; null: none is
 * @param dyBlocks dy is compact, b and db are not; null: none is
 * @param next another adapter of the same x, norm and scaling, computed in the same passes; its workspace is not read
 */
public record LoraGradients(
        float scaling,
        Tensor dy,
        Tensor x,
        Tensor h,
        Tensor a,
        Tensor b,
        @Nullable Dropout dropout,
        @Nullable LayerNorm norm,
        Tensor dh,
        Tensor da,
        Tensor db,
        @Nullable BlockList xBlocks,
        @Nullable BlockList dyBlocks,
        @Nullable LoraGradients next,
        @Nullable Tensor workspace)
        implements
            Operation {

    public LoraGradients(float scaling, Tensor dy, Tensor x, Tensor h, Tensor a, Tensor b, @Nullable Dropout dropout,
            Tensor dh, Tensor da, Tensor db, @Nullable Tensor workspace) {
        this(scaling, dy, x, h, a, b, dropout, null, dh, da, db, null, null, null, workspace);
    }

    @Override
    public long flops() {
        long m = x.shape().dim(0);
        long r = a.shape().dim(0);
        long own = 4 * m * r * dy.shape().dim(1) + 2 * m * r * x.shape().dim(1);
        return next == null ? own : own + next.flops();
    }
}
