package dev.penumbra.jmh;

import dev.penumbra.io.SafetensorsWriter;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.SplittableRandom;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/**
 * A Hugging Face model folder of an OPT's shape with random bf16 weights, and a file of random tokens: what a dense step
 * costs does not depend on either, so that nothing needs to be downloaded to time one.
 */
final class RandomOpt {

    /** Standard deviation of OPT's initial weights. */
    private static final float INIT_STD = 0.02f;

    private static final String TOKENS = "tokens.jsonl";

    private final ModelShape shape;
    private final int positions;
    private final Arena arena;
    private final SplittableRandom random = new SplittableRandom(42);
    private final Map<String, Tensor> tensors = new LinkedHashMap<>();

    private RandomOpt(ModelShape shape, int positions, Arena arena) {
        this.shape = shape;
        this.positions = positions;
        this.arena = arena;
    }

    /** The folder of a shape below the module's {@code target}, written on first use. */
    static Path folder(ModelShape shape) throws IOException {
        return folder(shape, ModelShape.POSITIONS);
    }

    /** The same with a position table of another length, which only random weights can be given. */
    static Path folder(ModelShape shape, int positions) throws IOException {
        String name = shape.checkpoint + (positions == ModelShape.POSITIONS ? "" : "-" + positions + "-positions");
        Path folder = Results.module().resolve("target/models").resolve(name);
        Path config = folder.resolve("config.json");
        // The configuration is written last: a folder that has one is whole.
        if (!Files.exists(config)) {
            Files.createDirectories(folder);
            try (Arena arena = Arena.ofConfined()) {
                SafetensorsWriter.write(folder.resolve("model.safetensors"),
                        new RandomOpt(shape, positions, arena).weights(),
                        Map.of("format", "pt"));
            }
            Files.writeString(config, config(shape, positions));
        }
        return folder;
    }

    /** JSON Lines of {@code samples} samples of {@code length} random tokens each, all but the first a completion, beside the model. */
    static Path tokens(ModelShape shape, int samples, int length) throws IOException {
        return tokens(shape, samples, length, 1);
    }

    /** The same with completions of a part of the length, at most all but the first token. */
    static Path tokens(ModelShape shape, int samples, int length, double completion) throws IOException {
        Path file = folder(shape, ModelShape.positions(length)).resolve(samples + "x" + length + "-" + TOKENS);
        int context = (int) Math.clamp(length - Math.round(completion * length), 1, length - 1L);
        JsonMapper json = new JsonMapper();
        SplittableRandom random = new SplittableRandom(7);
        StringBuilder lines = new StringBuilder();
        for (int i = 0; i < samples; i++) {
            ObjectNode line = json.createObjectNode();
            ArrayNode unsupervised = line.putArray("context");
            ArrayNode supervised = line.putArray("completion");
            for (int t = 0; t < length; t++) {
                (t < context ? unsupervised : supervised).add(random.nextInt(shape.vocabSize));
            }
            lines.append(line).append('\n');
        }
        return Files.writeString(file, lines);
    }

    private static String config(ModelShape shape, int positions) {
        ObjectNode config = new JsonMapper().createObjectNode();
        config.put("model_type", "opt");
        config.putArray("architectures").add("OPTForCausalLM");
        config.put("activation_function", "relu");
        config.put("hidden_size", shape.hiddenSize);
        config.put("word_embed_proj_dim", shape.hiddenSize);
        config.put("num_hidden_layers", shape.layers);
        config.put("num_attention_heads", shape.heads);
        config.put("ffn_dim", shape.ffnDim);
        config.put("vocab_size", shape.vocabSize);
        config.put("max_position_embeddings", positions);
        config.put("do_layer_norm_before", true);
        config.put("tie_word_embeddings", true);
        config.put("dropout", 0.0);
        config.put("attention_dropout", 0.0);
        config.put("bos_token_id", 2);
        config.put("eos_token_id", 2);
        config.put("pad_token_id", 1);
        return config.toPrettyString() + "\n";
    }

    private Map<String, Tensor> weights() {
        long h = shape.hiddenSize;
        String decoder = "model.decoder.";
        normal(decoder + "embed_tokens.weight", shape.vocabSize, h);
        // OPT's position table begins with two rows that no position uses.
        normal(decoder + "embed_positions.weight", positions + 2L, h);
        layerNorm(decoder + "final_layer_norm");
        for (int i = 0; i < shape.layers; i++) {
            String layer = decoder + "layers." + i + ".";
            for (String projection : new String[]{"q_proj", "k_proj", "v_proj", "out_proj"}) {
                linear(layer + "self_attn." + projection, h, h);
            }
            layerNorm(layer + "self_attn_layer_norm");
            linear(layer + "fc1", shape.ffnDim, h);
            linear(layer + "fc2", h, shape.ffnDim);
            layerNorm(layer + "final_layer_norm");
        }
        return tensors;
    }

    private void linear(String name, long out, long in) {
        normal(name + ".weight", out, in);
        constant(name + ".bias", 0, out);
    }

    private void layerNorm(String name) {
        constant(name + ".weight", 1, shape.hiddenSize);
        constant(name + ".bias", 0, shape.hiddenSize);
    }

    private void normal(String name, long... dims) {
        MemorySegment memory = allocate(name, dims).segment();
        for (long at = 0; at < memory.byteSize(); at += 2) {
            memory.set(ValueLayout.JAVA_SHORT, at, truncated((float) random.nextGaussian() * INIT_STD));
        }
    }

    private void constant(String name, float value, long... dims) {
        MemorySegment memory = allocate(name, dims).segment();
        for (long at = 0; at < memory.byteSize(); at += 2) {
            memory.set(ValueLayout.JAVA_SHORT, at, truncated(value));
        }
    }

    private Tensor allocate(String name, long... dims) {
        Tensor tensor = Tensor.allocate(arena, DType.BF16, Shape.of(dims));
        tensors.put(name, tensor);
        return tensor;
    }

    /** Random weights need no rounding: the upper half of a float is a bf16. */
    private static short truncated(float value) {
        return (short) (Float.floatToRawIntBits(value) >>> 16);
    }
}
