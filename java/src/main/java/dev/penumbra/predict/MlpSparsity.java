package dev.penumbra.predict;

import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * What a pass needs to choose blocks of MLP neurons, layer by layer. Scores, predictors and norms are in the order of the
 * neurons' places.
 *
 * @param config what was asked for
 * @param neurons of a layer's MLP
 * @param layers one entry a layer
 */
public record MlpSparsity(SparsityConfig config, int neurons, List<Layer> layers) {

    /**
     * One layer.
     *
     * @param capacity most blocks of a list
     * @param coverage part of the scores' sum that a list is to cover
     * @param scores [blocks], of a static list; null where the policy has others
     * @param predictor null where the policy has none
     * @param activationNorms [neurons]: ||fc2[:, j]||, what an activation counts; null where none is read
     * @param gradientNorms [neurons]: ||fc1[j, :]|| · ||fc2[:, j]||, what a ReLU's bit counts in the backward pass; null where
     *     none is read
     */
    @SuppressWarnings("ArrayRecordComponent")
    public record Layer(
            int capacity,
            double coverage,
            float @Nullable [] scores,
            @Nullable LowRankPredictor predictor,
            float @Nullable [] activationNorms,
            float @Nullable [] gradientNorms) {

        public Layer {
            if (capacity < 1) {
                throw new IllegalArgumentException("expected room for 1 block or more, found " + capacity);
            }
            if (!(coverage > 0 && coverage <= 1)) {
                throw new IllegalArgumentException("expected a coverage above 0, at most 1, found " + coverage);
            }
        }
    }

    public MlpSparsity {
        layers = List.copyOf(layers);
        int blocks = blocks(neurons, config.blockSize());
        for (int i = 0; i < layers.size(); i++) {
            Layer layer = layers.get(i);
            require(i, "at most " + blocks + " blocks", layer.capacity(), layer.capacity() <= blocks);
            requireLength(i, "scores", layer.scores(), blocks);
            requireLength(i, "activation norms", layer.activationNorms(), neurons);
            requireLength(i, "gradient norms", layer.gradientNorms(), neurons);
            LowRankPredictor predictor = layer.predictor();
            if (predictor != null) {
                require(i, "a predictor of " + blocks + " blocks", predictor, predictor.blocks() == blocks);
                int rows = config.rowsPerList();
                require(i, "pooled rows that divide the " + rows + " of a list", predictor.poolRows(),
                        rows == 0 || rows % predictor.poolRows() == 0);
            }
        }
    }

    /** Blocks of a layer. */
    public int blocks() {
        return neurons / config.blockSize();
    }

    /** @throws IllegalArgumentException when blocks do not divide the neurons */
    public static int blocks(int neurons, int blockSize) {
        if (neurons % blockSize != 0) {
            throw new IllegalArgumentException(
                    "expected a block size that divides the " + neurons + " neurons of an MLP, found " + blockSize);
        }
        return neurons / blockSize;
    }

    /** Whether a layer has nothing to choose, and runs dense. */
    public boolean isDense(int layer) {
        SelectionPolicy policy = config.policy();
        return policy == SelectionPolicy.OFF
                || policy != SelectionPolicy.ALL && policy != SelectionPolicy.EXACT && policy != SelectionPolicy.SEED
                        && layers.get(layer).capacity() == blocks() && layers.get(layer).coverage() == 1;
    }

    private static void requireLength(int layer, String name, float @Nullable [] values, int length) {
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
