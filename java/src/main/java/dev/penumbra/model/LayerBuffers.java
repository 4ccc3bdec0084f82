package dev.penumbra.model;

import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.HashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What one decoder layer writes in its forward pass; kept until its backward pass, or shared by layers that have none. But pre-norm
 * layers keep no norms.
 */
final class LayerBuffers {

    /** Of pre-norm layers one tensor with {@link #norm2}, and with all other layers': only until the next norm. */
    final Tensor norm1;
    final Tensor qkv;
    final Tensor attention;
    final Tensor lse;
    final Tensor middle;
    /** Pre-norm only; see {@link #norm1}. */
    final @Nullable Tensor norm2;
    final Tensor mask;
    /** mean and rstd of both norms, f32 [tokens] each. */
    final Tensor mean1;

    final Tensor rstd1;
    final Tensor mean2;
    final Tensor rstd2;
    /** Post-norm only: what the second norm reads. */
    final @Nullable Tensor sum2;

    final Map<String, Tensor> h = new HashMap<>();

    /**
     * @param scratch what no pre-norm layer keeps, the output of its norms: where the backward pass needs one, it starts from
     *     the norm's input, mean and rstd
     */
    LayerBuffers(Buffers buffers, OptConfig config, DType dtype, int tokens, String at, @Nullable Tensor scratch) {
        long hidden = config.hiddenSize();
        MemoryPlan.Kind kind = MemoryPlan.Kind.ACTIVATIONS;
        boolean post = !config.doLayerNormBefore();
        // In post-norm layers the first norm's output is the second block's residual and the first's gradient starts there.
        norm1 = post ? buffers.allocate(kind, at + "norm1", dtype, tokens, hidden) : scratch;
        qkv = buffers.allocate(kind, at + "qkv", dtype, tokens, 3 * hidden);
        attention = buffers.allocate(kind, at + "attention", dtype, tokens, hidden);
        lse = buffers.allocate(kind, at + "lse", DType.F32, (long) tokens * config.numAttentionHeads());
        middle = buffers.allocate(kind, at + "middle", dtype, tokens, hidden);
        norm2 = scratch;
        mask = reluMask(buffers, config, tokens, at);
        mean1 = buffers.allocate(kind, at + "mean1", DType.F32, tokens);
        rstd1 = buffers.allocate(kind, at + "rstd1", DType.F32, tokens);
        mean2 = buffers.allocate(kind, at + "mean2", DType.F32, tokens);
        rstd2 = buffers.allocate(kind, at + "rstd2", DType.F32, tokens);
        sum2 = post ? buffers.allocate(kind, at + "sum2", dtype, tokens, hidden) : null;
    }

    static Tensor reluMask(Buffers buffers, OptConfig config, int tokens, String at) {
        return buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, at + "relu mask", DType.U8, tokens,
                Math.ceilDiv(config.ffnDim(), 8));
    }

    void allocateH(Buffers buffers, String at, Site site, int tokens) {
        h.put(site.layer().kind(),
                buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, at + site.layer().kind() + ".h", DType.F32, tokens, site.r()));
    }
}
