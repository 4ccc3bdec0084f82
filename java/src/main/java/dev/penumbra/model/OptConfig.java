package dev.penumbra.model;

import java.nio.file.Path;
import tools.jackson.databind.JsonNode;

/**
 * What an OPT checkpoint's {@code config.json} says.
 *
 * @param wordEmbedProjDim width of the token embedding; other than hiddenSize, project_in and project_out lie between
 * @param doLayerNormBefore LayerNorm before each block, or (OPT-350m) after it
 * @param removeFinalLayerNorm no LayerNorm after the last layer
 * @param dropout the checkpoint's own dropout; not applied
 */
public record OptConfig(
        int hiddenSize,
        int numHiddenLayers,
        int numAttentionHeads,
        int ffnDim,
        int vocabSize,
        int maxPositionEmbeddings,
        int wordEmbedProjDim,
        boolean doLayerNormBefore,
        boolean removeFinalLayerNorm,
        boolean tieWordEmbeddings,
        int bosTokenId,
        int eosTokenId,
        int padTokenId,
        double dropout) {

    public OptConfig {
        if (hiddenSize % numAttentionHeads != 0) {
            throw new IllegalArgumentException(
                    "expected a hidden_size that num_attention_heads divides, found " + hiddenSize + " and "
                            + numAttentionHeads);
        }
    }

    public int headDim() {
        return hiddenSize / numAttentionHeads;
    }

    /** What products of queries and keys are scaled by. */
    float attentionScale() {
        return (float) (1 / Math.sqrt(headDim()));
    }

    /** @throws ModelException naming the first that is no token of the vocabulary */
    void requireTokens(int... ids) {
        for (int i = 0; i < ids.length; i++) {
            if (ids[i] < 0 || ids[i] >= vocabSize) {
                throw new ModelException("expected tokens in [0, " + vocabSize + "), found " + ids[i] + " at " + i
                        + ": is the tokenizer another model's?");
            }
        }
    }

    public boolean hasFinalLayerNorm() {
        return doLayerNormBefore && !removeFinalLayerNorm;
    }

    public boolean hasProjection() {
        return wordEmbedProjDim != hiddenSize;
    }

    /**
     * Reads a config.
     *
     * @param file what messages call it
     * @throws ModelException naming the file and the key that is missing or has a value that is not computed
     */
    public static OptConfig parse(JsonNode node, String file) {
        Reader reader = new Reader(node, file);
        reader.requireText("model_type", "opt", "opt");
        reader.requireText("activation_function", "relu", "relu");
        reader.requireTrue("enable_bias");
        reader.requireTrue("layer_norm_elementwise_affine");
        int hidden = reader.count("hidden_size");
        int heads = reader.count("num_attention_heads");
        if (hidden % heads != 0) {
            throw new ModelException(
                    file + ": expected a hidden_size that num_attention_heads divides, found " + hidden + " and " + heads);
        }
        return new OptConfig(
                hidden,
                reader.count("num_hidden_layers"),
                heads,
                reader.count("ffn_dim"),
                reader.count("vocab_size"),
                reader.count("max_position_embeddings"),
                node.hasNonNull("word_embed_proj_dim") ? reader.count("word_embed_proj_dim") : hidden,
                reader.flag("do_layer_norm_before", true),
                reader.flag("_remove_final_layer_norm", false),
                reader.flag("tie_word_embeddings", true),
                reader.id("bos_token_id", 2),
                reader.id("eos_token_id", 2),
                reader.id("pad_token_id", 1),
                node.path("dropout").asDouble(0.0));
    }

    static OptConfig parse(JsonNode node, Path file) {
        return parse(node, file.toString());
    }

    private record Reader(JsonNode node, String file) {
        int count(String key) {
            JsonNode value = node.get(key);
            if (value == null || !value.isIntegralNumber() || !value.canConvertToInt() || value.intValue() <= 0) {
                throw new ModelException(file + ": expected a positive integer for \"" + key + "\", found " + value);
            }
            return value.intValue();
        }

        int id(String key, int fallback) {
            JsonNode value = node.get(key);
            if (value == null || value.isNull()) {
                return fallback;
            }
            if (!value.isIntegralNumber() || !value.canConvertToInt() || value.intValue() < 0) {
                throw new ModelException(file + ": expected a token id for \"" + key + "\", found " + value);
            }
            return value.intValue();
        }

        boolean flag(String key, boolean fallback) {
            JsonNode value = node.get(key);
            if (value == null || value.isNull()) {
                return fallback;
            }
            if (!value.isBoolean()) {
                throw new ModelException(file + ": expected true or false for \"" + key + "\", found " + value);
            }
            return value.booleanValue();
        }

        void requireTrue(String key) {
            if (!flag(key, true)) {
                throw new ModelException(file + ": expected \"" + key + "\" to be true, found false");
            }
        }

        void requireText(String key, String expected, String fallback) {
            JsonNode value = node.get(key);
            String found = value == null || value.isNull() ? fallback : value.asString();
            if (!expected.equals(found)) {
                throw new ModelException(
                        file + ": expected \"" + key + "\" to be \"" + expected + "\", found \"" + found + "\"");
            }
        }
    }
}
