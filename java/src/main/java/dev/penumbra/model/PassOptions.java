package dev.penumbra.model;

import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.predict.MlpSparsity;
import org.jspecify.annotations.Nullable;

/**
 * What a pass does beside computing a batch densely.
 *
 * @param sparsity which blocks of MLP neurons it computes; null: all
 * @param attention which blocks of keys its heads attend to; null: all
 * @param observer is told what each MLP computes, in forward passes that compute it densely; null: nobody is
 * @param attentionObserver is told what each layer's attention computes, in dense forward passes; null: nobody is
 * @param offloaded of how many layers, from the lowest one that has a backward pass on, activations wait in host memory between
 *     their passes, while as many of the highest layers use their device memory; {@link #AUTOMATIC}: as many as cost hardly any
 *     time, and none where blocks are chosen
 * @param lossOnly whether nothing but losses and their gradients are read of it. The last layer then computes what follows its
 *     attention of supervised rows only, where they are fewer
 */
public record PassOptions(@Nullable MlpSparsity sparsity, @Nullable AttentionSparsity attention,
        @Nullable MlpObserver observer, @Nullable AttentionObserver attentionObserver, int offloaded,
        boolean lossOnly) {

    /** As many offloaded layers as copies of them hide behind the computation. */
    public static final int AUTOMATIC = -1;

    public static final PassOptions DENSE = new PassOptions(null, null, null, null, AUTOMATIC, false);

    /** @throws IllegalArgumentException when observers, who are shown all rows, are to see the loss's only */
    public PassOptions {
        if (offloaded < AUTOMATIC) {
            throw new IllegalArgumentException("expected 0 or more offloaded layers, or " + AUTOMATIC
                    + " for as many as cost hardly any time, found " + offloaded);
        }
        if (lossOnly && (observer != null || attentionObserver != null)) {
            throw new IllegalArgumentException("expected no observers in a pass of which only the loss is read");
        }
    }

    /** The same, of which only losses and their gradients are read. */
    public PassOptions forLoss() {
        return new PassOptions(sparsity, attention, observer, attentionObserver, offloaded, true);
    }

    /** The same, with so many layers' activations in host memory between their passes. */
    public PassOptions offloading(int layers) {
        return new PassOptions(sparsity, attention, observer, attentionObserver, layers, lossOnly);
    }

    public static PassOptions observed(@Nullable MlpObserver observer) {
        return observed(observer, null);
    }

    public static PassOptions observed(@Nullable MlpObserver observer, @Nullable AttentionObserver attentionObserver) {
        return new PassOptions(null, null, observer, attentionObserver, AUTOMATIC, false);
    }

    public static PassOptions sparse(@Nullable MlpSparsity sparsity) {
        return sparse(sparsity, null);
    }

    public static PassOptions sparse(@Nullable MlpSparsity sparsity, @Nullable AttentionSparsity attention) {
        return new PassOptions(sparsity, attention, null, null, AUTOMATIC, false);
    }
}
