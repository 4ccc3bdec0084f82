package dev.penumbra.predict;

import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * What a pass needs to choose blocks of keys, layer by layer.
 *
 * @param config what was asked for
 * @param heads of a layer
 * @param width blocks of the longest sample
 * @param layers one entry a layer
 */
public record AttentionSparsity(AttentionConfig config, int heads, int width, List<Layer> layers) {

    /**
     * One layer.
     *
     * @param dense whether nothing is to be chosen
     * @param coverage part of the masses' sum that a list is to cover
     * @param budgets [heads]: largest part of the blocks on and below the diagonal; null: all
     * @param table [heads, width, width] of masses that are the same for every sample; null where the policy has others
     * @param predictor of {@code width} blocks or more; null where the policy has none
     */
    @SuppressWarnings("ArrayRecordComponent")
    public record Layer(
            boolean dense,
            double coverage,
            float @Nullable [] budgets,
            float @Nullable [] table,
            @Nullable AttentionPredictor predictor) {

        /** Nothing to choose. */
        public static final Layer DENSE = new Layer(true, 1, null, null, null);

        public Layer {
            if (!(coverage > 0 && coverage <= 1)) {
                throw new IllegalArgumentException("expected a coverage above 0, at most 1, found " + coverage);
            }
        }
    }

    public AttentionSparsity {
        layers = List.copyOf(layers);
        for (int i = 0; i < layers.size(); i++) {
            Layer layer = layers.get(i);
            requireLength(i, "budgets", layer.budgets(), heads);
            requireLength(i, "masses of a table", layer.table(), (long) heads * width * width);
            if (layer.budgets() != null) {
                for (float budget : layer.budgets()) {
                    require(i, "budgets above 0, at most 1", budget, budget > 0 && budget <= 1);
                }
            }
            AttentionPredictor predictor = layer.predictor();
            if (predictor != null) {
                require(i, "a predictor of " + heads + " heads and blocks of " + config.blockSize() + " in samples of up to "
                        + width + " or more", predictor,
                        predictor.heads() == heads
                                && predictor.blockSize() == config.blockSize() && predictor.width() >= width);
            }
        }
    }

    /** Whether a layer has nothing to choose, and runs dense. */
    public boolean isDense(int layer) {
        return config.policy().isDense() || layers.get(layer).dense();
    }

    private static void requireLength(int layer, String name, float @Nullable [] values, long length) {
        if (values != null) {
            require(layer, length + " " + name, values.length, values.length == length);
        }
    }

    private static void require(int layer, String expected, Object found, boolean holds) {
        if (!holds) {
            throw new IllegalArgumentException("layer " + layer + ": expected " + expected + ", found " + found);
        }
    }
}
