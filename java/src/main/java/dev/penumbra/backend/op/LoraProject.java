package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * h = dropout(x) · aᵀ.
 *
 * @param x [m, in], rows contiguous
 * @param a f32 [r, in], any strides
 * @param h f32 [m, r]: {@code =}
 * @param xBlocks x is compact and a is not; null: neither is
 * @param next another adapter of the same x, computed in the same pass
 */
public record LoraProject(
        Tensor x,
        Tensor a,
        @Nullable Dropout dropout,
        Tensor h,
        @Nullable BlockList xBlocks,
        @Nullable LoraProject next)
        implements
            Operation {

    public LoraProject(Tensor x, Tensor a, @Nullable Dropout dropout, Tensor h) {
        this(x, a, dropout, h, null, null);
    }

    @Override
    public long flops() {
        return 2 * x.shape().dim(0) * x.shape().dim(1) * a.shape().dim(0) + (next == null ? 0 : next.flops());
    }
}
