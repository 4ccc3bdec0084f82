package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;

/**
 * d = s, rounded to nearest even; both on this device.
 *
 * @param s f32, bf16 or f16, any strides
 * @param d f32 or bf16, shape of {@code s}, any strides
 */
public record Convert(
        Tensor s,
        Tensor d)
        implements
            Operation {
}
