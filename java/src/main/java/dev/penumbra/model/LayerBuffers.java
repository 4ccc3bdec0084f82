package dev.penumbra.model;

import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What one decoder layer writes in its forward pass, [tokens, width] each: kept until its backward pass, or shared by layers that
 * have none. Pre-norm layers keep no norms' outputs: where the backward pass needs one, it starts from the norm's input, mean and
 * rstd.
 */
final class LayerBuffers {

    /** Post-norm only: the attention norm's output, which the MLP's half adds to and its gradient starts at. */
    final @Nullable Tensor norm1;
    /** [tokens, 3 hidden]. */
    final Tensor qkv;
    final Tensor attention;
    /** f32 [tokens · heads]. */
    final Tensor lse;
    /** What the attention's half of the layer gives. */
    final Tensor middle;
    /** mean and rstd of both norms, f32 [tokens] each. */
    final Tensor mean1;

    final Tensor rstd1;
    final Tensor mean2;
    final Tensor rstd2;
    /** Post-norm only: what the second norm reads. */
    final @Nullable Tensor sum2;

    /** Adapters' projections of their inputs, f32 [tokens, r] each, by kind. */
    final Map<String, Tensor> h = new HashMap<>();

    /**
     * @param residual dtype of what lies between the sublayers; {@code dtype} is that of what lies within them
     * @param host the layer whose {@link #largest} buffers are this one's too; null: it has its own
     */
    LayerBuffers(Buffers buffers, OptConfig config, DType dtype, DType residual, int tokens, String at,
            @Nullable LayerBuffers host) {
        long hidden = config.hiddenSize();
        boolean post = !config.doLayerNormBefore();
        norm1 = post ? buffers.activations(at + "norm1", residual, tokens, hidden) : null;
        qkv = host != null ? host.qkv : buffers.activations(at + "qkv", dtype, tokens, 3 * hidden);
        attention = host != null ? host.attention : buffers.activations(at + "attention", dtype, tokens, hidden);
        lse = buffers.activations(at + "lse", DType.F32, (long) tokens * config.numAttentionHeads());
        middle = host != null ? host.middle : buffers.activations(at + "middle", residual, tokens, hidden);
        mean1 = buffers.activations(at + "mean1", DType.F32, tokens);
        rstd1 = buffers.activations(at + "rstd1", DType.F32, tokens);
        mean2 = buffers.activations(at + "mean2", DType.F32, tokens);
        rstd2 = buffers.activations(at + "rstd2", DType.F32, tokens);
        sum2 = post ? buffers.activations(at + "sum2", residual, tokens, hidden) : null;
    }

    /** What takes most of its memory. */
    List<Tensor> largest() {
        return List.of(qkv, attention, middle);
    }

    void allocateH(Buffers buffers, String at, Site site, int tokens) {
        h.put(site.layer().kind(), buffers.activations(at + site.layer().kind() + ".h", DType.F32, tokens, site.r()));
    }
}
