package dev.penumbra.model;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Sees what every layer's MLP computes in a forward pass, on the pass's backend, and may enqueue operations of its own on
 * it. The tensors' contents are good until it returns: what is enqueued until then reads them.
 */
@FunctionalInterface
public interface MlpObserver {

    /**
     * Follows fc1.
     *
     * @param layer index of the decoder layer
     * @param input [m, hidden], of fc1
     * @param pooled f32 [ceil(m / poolRows), hidden], means over the input's rows; null when {@link #poolRows} is 0
     * @param activation [m, neurons], after ReLU, in the neurons' places
     * @param reluMask u8 [m, ceil(neurons / 8)]
     * @param validRows i32 [1] on the device: rows from it on are padding
     */
    void afterFc1(int layer, Tensor input, @Nullable Tensor pooled, Tensor activation, Tensor reluMask, Tensor validRows);

    /** Tokens over which the input is averaged; 0: it is not. */
    default int poolRows() {
        return 0;
    }
}
