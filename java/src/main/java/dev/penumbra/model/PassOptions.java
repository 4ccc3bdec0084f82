package dev.penumbra.model;

import dev.penumbra.predict.MlpSparsity;
import org.jspecify.annotations.Nullable;

/**
 * What a pass does beside computing a batch densely.
 *
 * @param sparsity which blocks of MLP neurons it computes; null: all
 * @param observer is told what each MLP computes, in forward passes that compute it densely; null: nobody is
 */
public record PassOptions(@Nullable MlpSparsity sparsity, @Nullable MlpObserver observer) {

    public static final PassOptions DENSE = new PassOptions(null, null);

    public static PassOptions observed(MlpObserver observer) {
        return new PassOptions(null, observer);
    }

    public static PassOptions sparse(@Nullable MlpSparsity sparsity) {
        return new PassOptions(sparsity, null);
    }
}
