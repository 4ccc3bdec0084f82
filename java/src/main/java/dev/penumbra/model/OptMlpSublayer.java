package dev.penumbra.model;

import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.tensor.Tensor;

/**
 * The second half of each layer: output = middle + MLP(norm(middle)), or (post-norm) output = norm(y + MLP(y)) with
 * y = norm(middle), where middle is what the attention's half gives.
 */
final class OptMlpSublayer {

    private final boolean preNorm;
    private final OptWeights weights;
    private final GradientReach reach;
    private final OptActivations activations;
    private final PassOps ops;
    private final OptMlp mlp;
    private final OptAttention attention;

    /** @param attention which the norm that ends a post-norm layer pools for */
    OptMlpSublayer(Opt model, GradientReach reach, OptActivations activations, PassOps ops, OptMlp mlp,
            OptAttention attention) {
        this.preNorm = model.config().doLayerNormBefore();
        this.weights = model.weights();
        this.reach = reach;
        this.activations = activations;
        this.ops = ops;
        this.mlp = mlp;
        this.attention = attention;
    }

    /** Reads what {@link OptAttentionSublayer#forward} has left, and writes the layer's output. */
    void forward(int i, RowSet rows, Run run) {
        LayerBuffers b = activations.layer(i);
        OptWeights.Layer w = weights.layers.get(i);
        Tensor middle = rows.of(b.middle);
        Tensor output = rows.of(activations.output(i));
        if (preNorm) {
            Tensor input = rows.of(activations.productInput());
            ops.norm(middle, w.mlpNorm(), input, b.mean2, b.rstd2, mlp.pooling(i, rows, run), null);
            mlp.forward(i, rows, input, middle, output, run);
            return;
        }
        Tensor normed = rows.of(b.norm1);
        Tensor sum = rows.of(b.sum2);
        ops.norm(middle, w.attentionNorm(), normed, b.mean1, b.rstd1, mlp.pooling(i, rows, run), null);
        mlp.forward(i, rows, ops.rounded(normed, activations.productInput()), normed, sum, run);
        // Which the next layer's queries and keys are made of.
        Pooling next = i + 1 < activations.layers() ? attention.pooling(i + 1, run) : null;
        ops.norm(sum, w.mlpNorm(), output, b.mean2, b.rstd2, next, null);
    }

    /**
     * grad += the adapters' gradients; dX, the gradient of the layer's output, becomes that of what the attention's half gives,
     * as far as gradients reach.
     */
    void backward(int i, RowSet rows, Tensor grad, Run run) {
        LayerBuffers b = activations.layer(i);
        OptWeights.Layer w = weights.layers.get(i);
        boolean reachesInput = reach.reachesAttention(i);
        boolean reachesFc1 = reach.reachesFc1(i);
        Tensor dx = rows.of(activations.dX());
        if (preNorm) {
            Tensor dBranch = rows.of(activations.dBranch());
            mlp.backward(i, rows, normed(i, rows, run), dx, null, reachesInput ? dBranch : null, reachesFc1, grad, run);
            if (reachesInput) {
                ops.normBackward(dBranch, b.middle, b.mean2, b.rstd2, w.mlpNorm(), dx, dx);
            }
            return;
        }
        ops.normBackward(dx, b.sum2, b.mean2, b.rstd2, w.mlpNorm(), null, dx);
        AdapterInput input = new AdapterInput(ops.rounded(rows.of(b.norm1), activations.productInput()), null);
        mlp.backward(i, rows, input, dx, dx, reachesInput ? dx : null, reachesFc1, grad, run);
        if (reachesInput) {
            ops.normBackward(dx, b.middle, b.mean1, b.rstd1, w.attentionNorm(), null, dx);
        }
    }

    /** A pre-norm MLP's input, which no layer keeps. */
    private AdapterInput normed(int i, RowSet rows, Run run) {
        LayerBuffers b = activations.layer(i);
        OptWeights.LayerNorm norm = weights.layers.get(i).mlpNorm();
        if (!mlp.recomputes(i, run)) {
            return ops.normed(rows.of(b.middle), norm, b.mean2, b.rstd2);
        }
        Tensor again = rows.of(activations.productInput());
        ops.norm(rows.of(b.middle), norm, again, b.mean2, b.rstd2, null, null);
        return new AdapterInput(again, null);
    }
}
