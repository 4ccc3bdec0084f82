package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * How much a batch uses each block of neurons: sums over rows of {@code norms[j] · max(0, x[i, j])}, or of {@code norms[j]}
 * where a bit of {@code reluMask} is set.
 *
 * @param x [m, n], rows contiguous; null with {@code reluMask}
 * @param reluMask u8 [m, n / 8]; null with {@code x}
 * @param norms f32 [n]; null: all 1
 * @param validRows i32 [1] on the device: only the rows before it count; null: all
 * @param rowsPerList as in {@link BlockList}
 * @param blockMass f32 [lists, n / blockSize]: {@code =}
 * @param neuronMass f32 [n]: {@code +=}
 * @param neuronFired f32 [n]: {@code +=} the number of rows in which the neuron is above 0
 */
public record ActivationMass(
        @Nullable Tensor x,
        @Nullable Tensor reluMask,
        @Nullable Tensor norms,
        @Nullable Tensor validRows,
        int blockSize,
        long rowsPerList,
        @Nullable Tensor blockMass,
        @Nullable Tensor neuronMass,
        @Nullable Tensor neuronFired,
        @Nullable Tensor workspace)
        implements
            Operation {

    public ActivationMass {
        if ((x == null) == (reluMask == null)) {
            throw new IllegalArgumentException("expected either activations or a ReLU mask");
        }
    }
}
