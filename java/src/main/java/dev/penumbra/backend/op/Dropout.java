package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;

/**
 * Dropout that backward draws again; the generator is specified in {@code gemm.h}.
 *
 * @param p the chance to be dropped, in (0, 1)
 * @param stream tells one use from another
 * @param state u64[2] on the device: seed, offset; read when the operation runs
 */
public record Dropout(float p, int stream, Tensor state) {
    public Dropout {
        if (!(p > 0 && p < 1)) {
            throw new IllegalArgumentException("expected a dropout probability in (0, 1), found " + p);
        }
    }
}
