package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * d[t] = table[tokens[t]] + positionTable[positions[t] + positionOffset] + residual[t]; each term may be null.
 *
 * @param tokens i32 [m]
 * @param table [vocab, h]; f32, bf16 or f16
 * @param positions i32 [m]
 * @param positionTable [positions, h]; f32, bf16 or f16
 * @param residual [m, h]
 * @param d [m, h]: {@code =}
 */
public record Embedding(
        @Nullable Tensor tokens,
        @Nullable Tensor table,
        @Nullable Tensor positions,
        @Nullable Tensor positionTable,
        int positionOffset,
        @Nullable Tensor residual,
        Tensor d)
        implements
            Operation {
}
