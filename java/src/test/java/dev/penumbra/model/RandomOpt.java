package dev.penumbra.model;

import dev.penumbra.io.SafetensorsWriter;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.function.IntPredicate;
import java.util.random.RandomGenerator;

/** OPT checkpoints with random weights, for tests. Logits and activations are of the size that a trained model's are. */
public record RandomOpt(
        int hidden, int heads, int ffn, int layers, int vocab, int positions, int embedding, boolean preNorm,
        boolean removeFinalNorm) {

    /** Small, of either norm style, with or without projections; sizes are rarely powers of two. */
    public static RandomOpt draw(RandomGenerator random) {
        int heads = random.nextInt(1, 4);
        int[] headDims = {3, 4, 5, 8, 12, 16, 20};
        int hidden = heads * headDims[random.nextInt(headDims.length)];
        return new RandomOpt(hidden, heads, random.nextInt(3, 60), random.nextInt(1, 4), random.nextInt(20, 80),
                random.nextInt(24, 48), random.nextInt(3) == 0 ? random.nextInt(3, 40) : hidden, random.nextBoolean(),
                random.nextInt(4) == 0);
    }

    /** Writes {@code config.json} and {@code model.safetensors}, in f32. */
    public void write(Path folder, RandomGenerator random) throws IOException {
        write(folder, random, neuron -> false);
    }

    /** @param dead neurons of every MLP that never fire */
    public void write(Path folder, RandomGenerator random, IntPredicate dead) throws IOException {
        Files.createDirectories(folder);
        Files.writeString(folder.resolve("config.json"), """
                {"model_type": "opt", "hidden_size": %d, "num_attention_heads": %d, "ffn_dim": %d, "num_hidden_layers": %d,
                 "vocab_size": %d, "max_position_embeddings": %d, "word_embed_proj_dim": %d, "do_layer_norm_before": %b,
                 "_remove_final_layer_norm": %b}
                """.formatted(hidden, heads, ffn, layers, vocab, positions, embedding, preNorm, removeFinalNorm));
        try (Arena arena = Arena.ofConfined()) {
            Map<String, Tensor> tensors = new HashMap<>();
            matrix(tensors, arena, random, "embed_tokens", vocab, embedding);
            matrix(tensors, arena, random, "embed_positions", positions + 2, hidden);
            if (embedding != hidden) {
                matrix(tensors, arena, random, "project_in", hidden, embedding);
                matrix(tensors, arena, random, "project_out", embedding, hidden);
            }
            if (preNorm && !removeFinalNorm) {
                norm(tensors, arena, random, "final_layer_norm");
            }
            for (int i = 0; i < layers; i++) {
                String at = "layers." + i + ".";
                for (String name : new String[]{"q_proj", "k_proj", "v_proj", "out_proj"}) {
                    linear(tensors, arena, random, at + "self_attn." + name, hidden, hidden);
                }
                linear(tensors, arena, random, at + "fc1", ffn, hidden);
                kill(tensors.get("model.decoder." + at + "fc1.bias"), dead);
                linear(tensors, arena, random, at + "fc2", hidden, ffn);
                norm(tensors, arena, random, at + "self_attn_layer_norm");
                norm(tensors, arena, random, at + "final_layer_norm");
            }
            SafetensorsWriter.write(folder.resolve("model.safetensors"), tensors, Map.of("format", "pt"));
        }
    }

    private static void kill(Tensor bias, IntPredicate dead) {
        float[] values = bias.toFloats();
        for (int j = 0; j < values.length; j++) {
            values[j] = dead.test(j) ? -100 : values[j];
        }
        bias.copyFrom(values);
    }

    private static void linear(Map<String, Tensor> tensors, Arena arena, RandomGenerator random, String name, int out,
            int in) {
        matrix(tensors, arena, random, name, out, in);
        put(tensors, arena, random, name + ".bias", 0, 0.15, out);
    }

    private static void matrix(Map<String, Tensor> tensors, Arena arena, RandomGenerator random, String name, int out,
            int in) {
        put(tensors, arena, random, name + ".weight", 0, 1 / Math.sqrt(in), out, in);
    }

    private void norm(Map<String, Tensor> tensors, Arena arena, RandomGenerator random, String name) {
        put(tensors, arena, random, name + ".weight", 1, 0.2, hidden);
        put(tensors, arena, random, name + ".bias", 0, 0.15, hidden);
    }

    private static void put(Map<String, Tensor> tensors, Arena arena, RandomGenerator random, String name, double mean,
            double deviation, long... dims) {
        Tensor tensor = Tensor.allocate(arena, DType.F32, Shape.of(dims));
        float[] values = new float[Math.toIntExact(tensor.shape().size())];
        for (int i = 0; i < values.length; i++) {
            values[i] = (float) (mean + deviation * random.nextGaussian());
        }
        tensor.copyFrom(values);
        tensors.put("model.decoder." + name, tensor);
    }
}
