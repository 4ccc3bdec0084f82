package dev.penumbra.model;

import java.nio.file.Path;
import tools.jackson.databind.JsonNode;

/**
 * What an OPT checkpoint's {@code config.json} says. Messages call its values by their names there.
 *
 * @param hiddenSize elements of a token's state; a multiple of numAttentionHeads
 * @param numHiddenLayers decoder layers
 * @param numAttentionHeads heads of a layer
 * @param ffnDim neurons of an MLP
 * @param vocabSize rows of the token embedding
 * @param maxPositionEmbeddings tokens of the longest sample
 * @param wordEmbedProjDim width of the token embedding; other than hiddenSize, project_in and project_out lie between
 * @param doLayerNormBefore LayerNorm before each block, or (OPT-350m) after it
 * @param removeFinalLayerNorm no LayerNorm after the last layer
 * @param tieWordEmbeddings the head is the token embedding
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

    /** @throws IllegalArgumentException naming the value that is none of a model's */
    public OptConfig {
        requirePositive("hidden_size", hiddenSize);
        requirePositive("num_hidden_layers", numHiddenLayers);
        requirePositive("num_attention_heads", numAttentionHeads);
        requirePositive("ffn_dim", ffnDim);
        requirePositive("vocab_size", vocabSize);
        requirePositive("max_position_embeddings", maxPositionEmbeddings);
        requirePositive("word_embed_proj_dim", wordEmbedProjDim);
        if (hiddenSize % numAttentionHeads != 0) {
            throw new IllegalArgumentException("expected a hidden_size that num_attention_heads divides, found " + hiddenSize
                    + " and " + numAttentionHeads);
        }
        requireToken("bos_token_id", bosTokenId);
        requireToken("eos_token_id", eosTokenId);
        requireToken("pad_token_id", padTokenId);
        if (!(dropout >= 0 && dropout <= 1)) {
            throw new IllegalArgumentException("expected a dropout in [0, 1], found " + dropout);
        }
    }

    private static void requirePositive(String name, int found) {
        if (found <= 0) {
            throw new IllegalArgumentException("expected " + name + " to be at least 1, found " + found);
        }
    }

    private static void requireToken(String name, int found) {
        if (found < 0) {
            throw new IllegalArgumentException("expected " + name + " to be a token, at least 0, found " + found);
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
        int hidden = reader.integer("hidden_size");
        int layers = reader.integer("num_hidden_layers");
        int heads = reader.integer("num_attention_heads");
        int neurons = reader.integer("ffn_dim");
        int vocabulary = reader.integer("vocab_size");
        int positions = reader.integer("max_position_embeddings");
        int embedding = reader.integer("word_embed_proj_dim", hidden);
        boolean normBefore = reader.flag("do_layer_norm_before", true);
        boolean noFinalNorm = reader.flag("_remove_final_layer_norm", false);
        boolean tied = reader.flag("tie_word_embeddings", true);
        int bos = reader.integer("bos_token_id", 2);
        int eos = reader.integer("eos_token_id", 2);
        int pad = reader.integer("pad_token_id", 1);
        double dropout = reader.number("dropout", 0);
        try {
            return new OptConfig(hidden, layers, heads, neurons, vocabulary, positions, embedding, normBefore, noFinalNorm,
                    tied, bos, eos, pad, dropout);
        } catch (IllegalArgumentException wrong) {
            throw new ModelException(file + ": " + wrong.getMessage(), wrong);
        }
    }

    static OptConfig parse(JsonNode node, Path file) {
        return parse(node, file.toString());
    }

    private record Reader(JsonNode node, String file) {
        int integer(String key) {
            JsonNode value = node.get(key);
            if (value == null || !value.isIntegralNumber() || !value.canConvertToInt()) {
                throw new ModelException(
                        file + ": expected an integer for \"" + key + "\", found " + (value == null ? "nothing" : value));
            }
            return value.intValue();
        }

        int integer(String key, int fallback) {
            return node.hasNonNull(key) ? integer(key) : fallback;
        }

        double number(String key, double fallback) {
            if (!node.hasNonNull(key)) {
                return fallback;
            }
            if (!node.get(key).isNumber()) {
                throw new ModelException(file + ": expected a number for \"" + key + "\", found " + node.get(key));
            }
            return node.get(key).doubleValue();
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
