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
 */
public record PassOptions(@Nullable MlpSparsity sparsity, @Nullable AttentionSparsity attention,
        @Nullable MlpObserver observer, @Nullable AttentionObserver attentionObserver) {

    public static final PassOptions DENSE = new PassOptions(null, null, null, null);

    public static PassOptions observed(@Nullable MlpObserver observer) {
        return observed(observer, null);
    }

    public static PassOptions observed(@Nullable MlpObserver observer, @Nullable AttentionObserver attentionObserver) {
        return new PassOptions(null, null, observer, attentionObserver);
    }

    public static PassOptions sparse(@Nullable MlpSparsity sparsity) {
        return sparse(sparsity, null);
    }

    public static PassOptions sparse(@Nullable MlpSparsity sparsity, @Nullable AttentionSparsity attention) {
        return new PassOptions(sparsity, attention, null, null);
    }
}
