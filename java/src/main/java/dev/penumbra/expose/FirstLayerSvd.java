package dev.penumbra.expose;

import dev.penumbra.io.ModelFolder;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.NeuronNorms;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.LowRankSvd;
import dev.penumbra.predict.Matrix;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;

/** The predictor that nobody trained: fc1's best approximation of a low rank tells each neuron's activation. */
final class FirstLayerSvd {

    private FirstLayerSvd() {
    }

    /** A unit is a neuron, in the order's places: a = V, b = W Vᵀ, with fc1's bias and fc2's norms. */
    static LowRankPredictor predictor(LanguageModel model, ModelFolder folder, int layer, NeuronNorms norms,
            NeuronOrder order,
            CalibrationConfig config) throws IOException {
        Tensor fc1 = model.fc1(layer);
        int neurons = Math.toIntExact(fc1.shape().dim(0));
        int hidden = Math.toIntExact(fc1.shape().dim(1));
        Matrix w = new Matrix(neurons, hidden, order.applyToRows(fc1.toFloats(), hidden));
        Matrix v = LowRankSvd.rightVectors(w, config.rank(), config.seed());
        Matrix b = w.times(v.transpose());
        String bias = folder.decoderPrefix() + "layers." + layer + ".fc1.bias";
        return new LowRankPredictor(v.rows(), hidden, neurons, v.values(), b.values(),
                order.apply(folder.tensor(bias, neurons).toFloats()), order.apply(norms.fc2()), 1, config.poolRows());
    }
}
