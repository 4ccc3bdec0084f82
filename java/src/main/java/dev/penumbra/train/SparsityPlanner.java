package dev.penumbra.train;

import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.NeuronNorms;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** What each layer of a model makes of the sparsity that a run is asked for. */
public final class SparsityPlanner {

    /** Batches differ: so much more room than most of the sample text's needed. */
    public static final double HEADROOM = 1.25;

    private SparsityPlanner() {
    }

    /**
     * Reads the norms of the checkpoint's weights where the policy needs them: its folder must be open.
     *
     * @param exposure what calibration found out, or null
     * @throws IllegalArgumentException when the policy needs a calibration and there is none, or it is another model's
     */
    public static MlpSparsity plan(LanguageModel model, SparsityConfig config, @Nullable MlpExposure exposure)
            throws IOException {
        SelectionPolicy policy = config.policy();
        if (policy.needsCalibration() && exposure == null) {
            throw new IllegalArgumentException("expected a calibration for " + policy.word()
                    + " blocks, found none: penumbra calibrate makes one");
        }
        if (exposure != null) {
            requireSame(model, exposure);
        }
        List<MlpSparsity.Layer> layers = new ArrayList<>();
        for (int i = 0; i < model.mlpLayers(); i++) {
            layers.add(layer(model, config, exposure, i));
        }
        return new MlpSparsity(config, model.mlpNeurons(), layers);
    }

    private static void requireSame(LanguageModel model, MlpExposure exposure) {
        if (exposure.layers() != model.mlpLayers() || exposure.neurons() != model.mlpNeurons()) {
            throw new IllegalArgumentException("expected a calibration of " + model.mlpLayers() + " layers of "
                    + model.mlpNeurons() + " neurons, found " + exposure.layers() + " of " + exposure.neurons());
        }
        for (int i = 0; i < model.mlpLayers(); i++) {
            NeuronOrder order = model.neuronOrder(i);
            if (order == null ? !exposure.order(i).isIdentity() : !exposure.order(i).equals(order)) {
                throw new IllegalArgumentException(
                        "layer " + i + ": expected a model loaded in the calibration's order of neurons, found another");
            }
        }
    }

    private static MlpSparsity.Layer layer(LanguageModel model, SparsityConfig config, @Nullable MlpExposure exposure, int i)
            throws IOException {
        SelectionPolicy policy = config.policy();
        int size = config.blockSize();
        int blocks = MlpSparsity.blocks(model.mlpNeurons(), size);
        boolean backward = config.pass() == Pass.BACKWARD;
        int capacity = Math.max(1, (int) Math.ceil(config.budget() * blocks - 1e-9));
        double coverage = config.coverage();
        if (exposure != null && coverage < 1 && policy != SelectionPolicy.RANDOM) {
            double kept = exposure.keptAt(i, size, config.pass(), coverage, config.rowsPerList());
            if (kept * blocks > blocks - 1 && capacity == blocks) {
                // Nothing to gain: dense.
                coverage = 1;
            } else {
                capacity = Math.min(capacity, Math.max(1, (int) Math.ceil(kept * HEADROOM * blocks)));
            }
        }
        boolean readsNorms = policy.readsActivations() || config.senseEvery() > 0
                || policy == SelectionPolicy.STATIC && (backward || exposure == null);
        NeuronNorms norms = readsNorms ? model.neuronNorms(i) : null;
        float[] scores = policy == SelectionPolicy.STATIC ? staticScores(config, exposure, norms, i, blocks) : null;
        LowRankPredictor predictor = policy.needsCalibration() ? predictor(config, exposure, i) : null;
        return new MlpSparsity.Layer(capacity, coverage, scores, predictor, norms == null ? null : norms.fc2(),
                norms == null ? null : norms.product());
    }

    private static LowRankPredictor predictor(SparsityConfig config, MlpExposure exposure, int i) {
        var found = config.policy() == SelectionPolicy.PREDICTED
                ? exposure.predictor(i, config.blockSize())
                : exposure.lowRank(i, config.blockSize());
        return found.orElseThrow(() -> new IllegalArgumentException("layer " + i + ": expected a calibration for "
                + config.policy().word() + " blocks of " + config.blockSize() + " neurons, found one for others"));
    }

    /** By sample text, or by the weights alone. */
    private static float[] staticScores(SparsityConfig config, @Nullable MlpExposure exposure, @Nullable NeuronNorms norms,
            int i, int blocks) {
        float[] neurons;
        if (exposure == null) {
            neurons = norms.product();
        } else if (config.pass() == Pass.BOTH) {
            neurons = exposure.mass(i);
        } else {
            neurons = norms.product();
            float[] fired = exposure.fired(i);
            for (int j = 0; j < neurons.length; j++) {
                neurons[j] *= fired[j];
            }
        }
        float[] scores = new float[blocks];
        for (int j = 0; j < neurons.length; j++) {
            scores[j / config.blockSize()] += neurons[j];
        }
        return scores;
    }
}
