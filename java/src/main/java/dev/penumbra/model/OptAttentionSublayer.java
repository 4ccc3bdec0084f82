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

    /**
     * Reads the layer's input, and writes what {@link OptMlpSublayer#forward} goes on from: b.middle.
     *
     * @param after the rows that it goes on with
     */
    void forward(int i, RowSet after, Run run) {
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
        Tensor heads = batch.of(b.attention);
        Tensor residual = input;
        Tensor middle = after.of(b.middle);
        if (after.isPart()) {
            heads = after.of(activations.judgedHeads());
            ops.gather(after, batch.of(b.attention), heads);
            ops.gather(after, input, middle);
            residual = middle;
        }
        terms = adapters.project(i, OUT, heads, b.h, after.whole(), null);
        ops.linear(heads, w.out(), terms, residual, middle);
    }

    /**
     * grad += the adapters' gradients; dX, the gradient of what {@link #forward} gives, becomes that of the layer's input,
     * as far as gradients reach.
     *
     * @param after the rows that {@link #forward} gave
     */
    void backward(int i, RowSet after, Tensor grad, Run run) {
        LayerBuffers b = activations.layer(i);
        OptWeights.Layer w = weights.layers.get(i);
        Tensor dMiddle = after.of(activations.dX());
        Tensor dBranch = batch.of(activations.dBranch());
        Tensor dQkv = batch.of(activations.dQkv());
        // Until there are gradients of queries, and again when nobody needs these: rows of one hidden vector.
        Tensor aside = activations.dQkv().reshape(3 * activations.dQkv().shape().dim(0), dBranch.shape().dim(1));
        Tensor heads = batch.of(b.attention);
        if (after.isPart() && adapters.has(i, OUT)) {
            ops.gather(after, heads, after.of(dBranch));
            heads = after.of(dBranch);
        }
        List<LowRank> terms = gradients(i, OUT, dMiddle, new AdapterInput(heads, null), after.whole(), grad);
        if (!reach.reachesQkv(i)) {
            return;
        }
        ops.linearBackward(dMiddle, w.out(), terms, null, after.isPart() ? after.of(aside) : dBranch);
        if (after.isPart()) {
            ops.spread(after, after.of(aside), dBranch);
        }
        attention.backward(i, b, dBranch, dQkv, reach.reachesKeys(i), run);
        Tensor input = activations.input(i);
        AdapterInput qkvInput = preNorm
                ? ops.normed(batch.of(input), w.attentionNorm(), b.mean1, b.rstd1)
                : new AdapterInput(ops.rounded(batch.of(input), activations.productInput()), null);
        terms = gradients(i, QKV, dQkv, qkvInput, batch.whole(), grad);
        if (!reach.reachesInput(i)) {
            return;
        }
        Tensor dx = batch.of(activations.dX());
        if (preNorm) {
            ops.linearBackward(dQkv, w.qkv(), terms, null, dBranch);
            Tensor residual = ofAll(after, dMiddle, batch.of(aside));
            ops.normBackward(dBranch, input, b.mean1, b.rstd1, w.attentionNorm(), residual, dx);
        } else {
            Tensor residual = ofAll(after, dMiddle, dBranch);
            ops.linearBackward(dQkv, w.qkv(), terms, residual, dx);
        }
    }

    /** The gradient of the rows that went on as one of all rows: in {@code room}, where that is another. */
    private Tensor ofAll(RowSet after, Tensor gradient, Tensor room) {
        if (!after.isPart()) {
            return gradient;
        }
        ops.spread(after, gradient, room);
        return room;
    }

    private List<LowRank> gradients(int layer, List<String> kinds, Tensor dy, AdapterInput in, Band band, Tensor grad) {
        return adapters.gradients(layer, kinds, dy, in, activations.layer(layer).h, band, grad, null, null);
    }
}
