package dev.penumbra.lora;

/**
 * A frozen linear layer y = x Wᵀ that an adapter may sit on.
 *
 * @param layer index of the transformer layer
 * @param kind its name within the layer, as PEFT's target_modules has it: "q_proj"
 * @param name its name within the decoder: "layers.3.self_attn.q_proj"
 * @param in columns of W
 * @param out rows of W
 */
public record AdaptableLayer(int layer, String kind, String name, int in, int out) {
}
