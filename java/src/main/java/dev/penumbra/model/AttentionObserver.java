package dev.penumbra.model;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Sees what every layer's attention computes in a dense forward pass, on the pass's backend, and may enqueue operations of
 * its own on it. The tensors' contents are good until it returns: what is enqueued until then reads them.
 */
@FunctionalInterface
public interface AttentionObserver {

    /**
     * A layer's attention over a packed batch.
     *
     * @param pooled f32 [ceil(m / poolRows), hidden], means over the rows that queries and keys are made of; null when
     *     {@link #poolRows} is 0, and in a first layer without a norm before its queries and keys
     * @param q [m, heads, head_dim]; k and v likewise
     * @param lse f32 [heads, m]
     * @param cuSeqlens i32 [samples + 1] on the device
     * @param maxSeqlen no sample is longer
     * @param validRows i32 [1] on the device: rows from it on are padding
     */
    record Seen(@Nullable Tensor pooled, Tensor q, Tensor k, Tensor v, Tensor lse, Tensor cuSeqlens, long maxSeqlen,
            Tensor validRows) {
    }

    /** Follows a layer's attention. */
    void afterAttention(int layer, Seen seen);

    /** Tokens over which the input is averaged; 0: it is not. */
    default int poolRows() {
        return 0;
    }
}
