package dev.penumbra.model;

import static dev.penumbra.model.AdapterTerms.OUT;
import static dev.penumbra.model.AdapterTerms.QKV;

import dev.penumbra.backend.op.LowRank;
import dev.penumbra.tensor.Tensor;
import java.util.List;

/**
 * The first half of each layer: middle = input + out_proj(attention(q, k, v)), where q, k and v are projections of the input's
 * norm, or (post-norm) of the input itself.
 */
final class OptAttentionSublayer {

    private final boolean preNorm;
    private final OptWeights weights;
    private final AdapterTerms adapters;
    private final GradientReach reach;
    private final OptActivations activations;
    private final LoadedBatch batch;
    private final PassOps ops;
    private final OptAttention attention;

    OptAttentionSublayer(Opt model, AdapterTerms adapters, GradientReach reach, OptActivations activations,
            LoadedBatch batch,
            PassOps ops, OptAttention attention) {
        this.preNorm = model.config().doLayerNormBefore();
        this.weights = model.weights();
        this.adapters = adapters;
        this.reach = reach;
        this.activations = activations;
        this.batch = batch;
        this.ops = ops;
        this.attention = attention;
    }

    /** Reads the layer's input, and writes what {@link OptMlpSublayer#forward} goes on from: b.middle. */
    void forward(int i, Run run) {
        LayerBuffers b = activations.layer(i);
        OptWeights.Layer w = weights.layers.get(i);
        Band whole = batch.whole();
        Tensor input = batch.of(activations.input(i));
        Tensor qkvInput;
        List<LowRank> terms;
        if (preNorm) {
            qkvInput = batch.of(activations.productInput());
            ops.norm(input, w.attentionNorm(), qkvInput, b.mean1, b.rstd1, attention.pooling(i, run),
                    adapters.projection(i, QKV, qkvInput, b.h, whole, null));
            terms = adapters.projected(i, QKV, b.h, whole);
        } else {
            qkvInput = ops.rounded(input, activations.productInput());
            terms = adapters.project(i, QKV, qkvInput, b.h, whole, null);
        }
        ops.linear(qkvInput, w.qkv(), terms, null, batch.of(b.qkv));
        attention.forward(i, b, run);
        terms = adapters.project(i, OUT, batch.of(b.attention), b.h, whole, null);
        ops.linear(batch.of(b.attention), w.out(), terms, input, batch.of(b.middle));
    }

    /**
     * grad += the adapters' gradients; dX, the gradient of what {@link #forward} gives, becomes that of the layer's input,
     * as far as gradients reach.
     */
    void backward(int i, Tensor grad, Run run) {
        LayerBuffers b = activations.layer(i);
        OptWeights.Layer w = weights.layers.get(i);
        Tensor dx = batch.of(activations.dX());
        Tensor dBranch = batch.of(activations.dBranch());
        Tensor dQkv = batch.of(activations.dQkv());
        List<LowRank> terms = gradients(i, OUT, dx, new AdapterInput(batch.of(b.attention), null), grad);
        if (!reach.reachesQkv(i)) {
            return;
        }
        ops.linearBackward(dx, w.out(), terms, null, dBranch);
        attention.backward(i, b, dBranch, dQkv, reach.reachesKeys(i), run);
        Tensor input = activations.input(i);
        AdapterInput qkvInput = preNorm
                ? ops.normed(input, w.attentionNorm(), b.mean1, b.rstd1)
                : new AdapterInput(ops.rounded(batch.of(input), activations.productInput()), null);
        terms = gradients(i, QKV, dQkv, qkvInput, grad);
        if (!reach.reachesInput(i)) {
            return;
        }
        if (preNorm) {
            ops.linearBackward(dQkv, w.qkv(), terms, null, dBranch);
            ops.normBackward(dBranch, input, b.mean1, b.rstd1, w.attentionNorm(), dx, dx);
        } else {
            ops.linearBackward(dQkv, w.qkv(), terms, dx, dx);
        }
    }

    private List<LowRank> gradients(int layer, List<String> kinds, Tensor dy, AdapterInput in, Tensor grad) {
        return adapters.gradients(layer, kinds, dy, in, activations.layer(layer).h, batch.whole(), grad, null, null);
    }
}
