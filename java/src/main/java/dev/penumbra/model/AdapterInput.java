package dev.penumbra.model;

import dev.penumbra.backend.op.LayerNorm;
import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * What adapters read: rows of a batch, or their layer norm, which nobody keeps.
 *
 * @param norm over x; null: x itself
 */
record AdapterInput(Tensor x, @Nullable LayerNorm norm) {

    AdapterInput of(Band band) {
        return new AdapterInput(band.of(x), norm == null
                ? null
                : new LayerNorm(band.of(norm.mean()), band.of(norm.rstd()), norm.gamma(), norm.beta()));
    }
}
