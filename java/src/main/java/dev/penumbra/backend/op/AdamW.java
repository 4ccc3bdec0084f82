package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * AdamW with clipping by the global norm, as torch.optim.AdamW; the formulas are in {@code optimizer.h}.
 * When the norm is not finite, gradNorm is written and nothing else is.
 *
 * @param param f32 [n], likewise grad, m, v
 * @param maxNorm 0: no clipping
 * @param schedule f32 [3]: lr, 1 − beta1ᵗ, 1 − beta2ᵗ
 * @param gradNorm f32 [1]: {@code =}, the norm before clipping
 */
public record AdamW(
        Tensor param,
        Tensor grad,
        Tensor m,
        Tensor v,
        float beta1,
        float beta2,
        float epsilon,
        float weightDecay,
        float maxNorm,
        Tensor schedule,
        Tensor gradNorm,
        @Nullable Tensor workspace)
        implements
            Operation {
}
