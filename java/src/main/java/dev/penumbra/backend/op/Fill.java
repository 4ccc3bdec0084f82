package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;

/**
 * d = value.
 *
 * @param d any dtype, any strides
 */
public record Fill(
        float value,
        Tensor d)
        implements
            Operation {
}
