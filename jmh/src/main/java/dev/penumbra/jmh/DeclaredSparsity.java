package dev.penumbra.jmh;

import dev.penumbra.Penumbra;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import java.util.Locale;
import java.util.Optional;
import java.util.SplittableRandom;

/**
 * Sparsity of a declared size for timing on random weights, where nothing is to be predicted: everything that choosing costs
 * is there. Forward and backward, blocks are chosen by a predictor of random weights, which takes as long as a trained one;
 * backward alone, by the true mass.
 */
final class DeclaredSparsity {

    private static final int RANK = 32;
    private static final int POOL_ROWS = 16;

    private DeclaredSparsity() {
    }

    static SparsityConfig config(Pass pass, double budget, int block, int rowsPerList) {
        SelectionPolicy policy = pass == Pass.BOTH ? SelectionPolicy.PREDICTED : SelectionPolicy.ORACLE;
        return new SparsityConfig(policy, pass, 1, budget, block, rowsPerList, 0, 0, false);
    }

    static String name(Pass pass, double budget) {
        return String.format(Locale.ROOT, "%.2f of the MLP's blocks, %s", budget,
                pass == Pass.BOTH ? "both passes" : "backward only");
    }

    static MlpExposure exposure(Penumbra penumbra) {
        LanguageModel model = penumbra.model();
        int hidden = (int) model.adaptableLayers().getFirst().in();
        return new Random(model.mlpLayers(), model.mlpNeurons(), hidden);
    }

    private record Random(int layers, int neurons, int hidden) implements MlpExposure {

        @Override
        public NeuronOrder order(int layer) {
            return NeuronOrder.identity(neurons);
        }

        @Override
        public float[] mass(int layer) {
            return normal(layer, neurons);
        }

        @Override
        public float[] fired(int layer) {
            return normal(layer, neurons);
        }

        @Override
        public Optional<LowRankPredictor> predictor(int layer, int blockSize) {
            int units = neurons / blockSize;
            return Optional.of(new LowRankPredictor(RANK, hidden, units, normal(layer, RANK * hidden),
                    normal(layer + layers, units * RANK), new float[units], null, 1, POOL_ROWS));
        }

        @Override
        public Optional<LowRankPredictor> lowRank(int layer, int blockSize) {
            return Optional.empty();
        }

        @Override
        public double keptAt(int layer, int blockSize, Pass pass, double coverage, int rowsPerList) {
            return 1;
        }

        @Override
        public String identity() {
            return "random";
        }

        private static float[] normal(long seed, int count) {
            SplittableRandom random = new SplittableRandom(seed);
            float[] values = new float[count];
            for (int i = 0; i < count; i++) {
                values[i] = (float) random.nextGaussian();
            }
            return values;
        }
    }
}
