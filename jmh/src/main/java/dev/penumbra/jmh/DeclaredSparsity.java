package dev.penumbra.jmh;

import dev.penumbra.Penumbra;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import java.util.Arrays;
import java.util.Locale;
import java.util.Optional;
import java.util.SplittableRandom;

/**
 * Sparsity of a declared size for timing on random weights, where nothing is to be predicted: everything that choosing costs
 * is there. Forward and backward, blocks are chosen by a predictor of random weights, which takes as long as a trained one;
 * backward alone, by the true mass. What attention always keeps, a sample's diagonal and first blocks, may be more than was
 * declared: a run tells what it kept.
 */
final class DeclaredSparsity {

    private static final int RANK = 32;
    private static final int POOL_ROWS = 16;

    /** What calibration makes for attention. */
    private static final int ATTENTION_RANK = 16;
    private static final int ATTENTION_POOL_ROWS = 32;

    private DeclaredSparsity() {
    }

    /** @param budget 1: dense */
    static SparsityConfig config(Pass pass, double budget, int block, int rowsPerList) {
        if (budget == 1) {
            return SparsityConfig.OFF;
        }
        SelectionPolicy policy = pass == Pass.BOTH ? SelectionPolicy.PREDICTED : SelectionPolicy.ORACLE;
        return new SparsityConfig(policy, pass, 1, budget, block, rowsPerList, 0, 0, false);
    }

    /** @param budget 1: dense */
    static AttentionConfig attention(Pass pass, double budget, int block) {
        return budget == 1
                ? AttentionConfig.OFF
                : new AttentionConfig(pass == Pass.BOTH ? AttentionPolicy.PREDICTED : AttentionPolicy.ORACLE, pass, 1,
                        budget,
                        block, 0, 0, false);
    }

    /** Of budgets that are not both 1. */
    static String name(Pass pass, double budget, double attentionBudget) {
        String mlp = budget == 1 ? "" : String.format(Locale.ROOT, "%.2f of the MLP's blocks", budget);
        String attention = attentionBudget == 1
                ? ""
                : String.format(Locale.ROOT, "%.2f of attention's blocks", attentionBudget);
        return "Penumbra, " + mlp + (mlp.isEmpty() || attention.isEmpty() ? "" : " and ") + attention
                + (pass == Pass.BOTH ? ", both passes" : ", backward only");
    }

    static AttentionExposure attentionExposure(Penumbra penumbra, AttentionConfig config, int seqLen) {
        LanguageModel model = penumbra.model();
        return new RandomAttention(model.mlpLayers(), model.attentionHeads(), config.blockSize(),
                Math.ceilDiv(seqLen, config.blockSize()), (int) model.adaptableLayers().getFirst().in());
    }

    private record RandomAttention(int layers, int heads, int blockSize, int width, int hidden)
            implements
                AttentionExposure {

        @Override
        public float[] table(int layer) {
            throw new UnsupportedOperationException("expected predictions, found a request for a table");
        }

        /** Scores as spread as a softmax's usually are, so that no block's mass is rounded to 0. */
        @Override
        public Optional<AttentionPredictor> predictor(int layer) {
            float[] a = Random.normal(layer, 2 * heads * ATTENTION_RANK * hidden);
            float scale = (float) Math.sqrt(1.0 / hidden / Math.sqrt(ATTENTION_RANK));
            for (int i = 0; i < a.length; i++) {
                a[i] *= scale;
            }
            return Optional.of(new AttentionPredictor(heads, ATTENTION_RANK, hidden, width, a,
                    new float[2 * heads * ATTENTION_RANK], new float[heads * width], ATTENTION_POOL_ROWS, blockSize));
        }

        @Override
        public double[] keptAt(int layer, double coverage) {
            double[] kept = new double[heads];
            Arrays.fill(kept, coverage);
            return kept;
        }

        @Override
        public String identity() {
            return "random";
        }
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
