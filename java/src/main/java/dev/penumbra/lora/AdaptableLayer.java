package dev.penumbra.lora;

import dev.penumbra.sparse.NeuronOrder;
import org.jspecify.annotations.Nullable;

/**
 * A frozen linear layer y = x Wᵀ that an adapter may sit on.
 *
 * @param layer index of the transformer layer
 * @param kind its name within the layer, as PEFT's target_modules has it: "q_proj"
 * @param name its name within the decoder: "layers.3.self_attn.q_proj"
 * @param in columns of W
 * @param out rows of W
 * @param inOrder how W's columns lie in memory; null: as in the checkpoint
 * @param outOrder how W's rows lie in memory; null: as in the checkpoint
 */
public record AdaptableLayer(int layer, String kind, String name, int in, int out, @Nullable NeuronOrder inOrder,
        @Nullable NeuronOrder outOrder) {

    /** In the checkpoint's order. */
    public AdaptableLayer(int layer, String kind, String name, int in, int out) {
        this(layer, kind, name, in, out, null, null);
    }
}
