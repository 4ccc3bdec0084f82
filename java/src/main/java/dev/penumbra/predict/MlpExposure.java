package dev.penumbra.predict;

import dev.penumbra.sparse.NeuronOrder;
import java.util.Optional;

/**
 * What calibration has found out about a model's MLPs, layer by layer. Neurons are counted by their places in {@link #order}.
 */
public interface MlpExposure {

    int layers();

    /** Neurons of a layer. */
    int neurons();

    /** Which neuron lies where; the model is to be loaded in this order. */
    NeuronOrder order(int layer);

    /** [neurons]: the mean over tokens of |activation| · ||fc2[:, j]||. */
    float[] mass(int layer);

    /** [neurons]: the part of the tokens that a neuron fires for. */
    float[] fired(int layer);

    /** What was trained to tell blocks' mass; empty where none was for this size. */
    Optional<LowRankPredictor> predictor(int layer, int blockSize);

    /** What fc1's largest singular values tell; empty where none was kept. */
    Optional<LowRankPredictor> lowRank(int layer, int blockSize);

    /**
     * The part of the blocks, from 0 to 1, that most lists of sample text need to cover this part of their mass.
     *
     * @param rowsPerList tokens that share a list; 0: the whole batch
     */
    double keptAt(int layer, int blockSize, SparsityConfig.Pass pass, double coverage, int rowsPerList);

    /** Tells one calibration from another: its file's hash. */
    String identity();
}
