package dev.penumbra.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

class OptConfigTest {

    private static final JsonMapper JSON = new JsonMapper();
    private static final String FILE = "folder/config.json";

    private static ObjectNode config() {
        return (ObjectNode) JSON.readTree("""
                {"model_type": "opt", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
                 "vocab_size": 61, "max_position_embeddings": 32, "word_embed_proj_dim": 24, "bos_token_id": 0,
                 "eos_token_id": 2, "pad_token_id": 1, "dropout": 0.1, "do_layer_norm_before": false}
                """);
    }

    @Test
    void everyValueIsRead() {
        assertThat(OptConfig.parse(config(), FILE)).isEqualTo(
                new OptConfig(48, 2, 4, 64, 61, 32, 24, false, false, true, 0, 2, 1, 0.1));
    }

    @Test
    void whatMayBeLeftOutHasTransformersDefault() {
        ObjectNode config = config();
        config.remove(List.of("word_embed_proj_dim", "bos_token_id", "eos_token_id", "pad_token_id", "dropout",
                "do_layer_norm_before"));
        assertThat(OptConfig.parse(config, FILE)).isEqualTo(
                new OptConfig(48, 2, 4, 64, 61, 32, 48, true, false, true, 2, 2, 1, 0));
    }

    @ParameterizedTest
    @ValueSource(strings = {"hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "vocab_size",
            "max_position_embeddings", "word_embed_proj_dim"})
    void aSizeIsAtLeastOne(String name) {
        for (int found : new int[]{0, -48}) {
            assertThatThrownBy(() -> OptConfig.parse(config().put(name, found), FILE)).isInstanceOf(ModelException.class)
                    .hasMessage("folder/config.json: expected " + name + " to be at least 1, found " + found);
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
            "num_attention_heads | 5 | expected a hidden_size that num_attention_heads divides, found 48 and 5",
            "pad_token_id | -1 | expected pad_token_id to be a token, at least 0, found -1",
            "dropout | 1.5 | expected a dropout in [0, 1], found 1.5",
            "dropout | \"none\" | expected a number for \"dropout\", found \"none\"",
            "ffn_dim | 64.5 | expected an integer for \"ffn_dim\", found 64.5",
            "ffn_dim | 4294967296 | expected an integer for \"ffn_dim\", found 4294967296",
            "bos_token_id | \"</s>\" | expected an integer for \"bos_token_id\", found \"</s>\"",
            "ffn_dim | null | expected an integer for \"ffn_dim\", found null"})
    void aWrongValueIsNamedWithItsFile(String name, String value, String message) {
        ObjectNode config = config();
        config.set(name, JSON.readTree(value));
        assertThatThrownBy(() -> OptConfig.parse(config, FILE)).isInstanceOf(ModelException.class)
                .hasMessage("folder/config.json: " + message);
    }

    @Test
    void aMissingSizeIsNamedWithItsFile() {
        ObjectNode config = config();
        config.remove("vocab_size");
        assertThatThrownBy(() -> OptConfig.parse(config, FILE)).isInstanceOf(ModelException.class)
                .hasMessage("folder/config.json: expected an integer for \"vocab_size\", found nothing");
    }

    @Test
    void aConfigMadeInJavaIsCheckedToo() {
        assertThatThrownBy(() -> new OptConfig(48, 2, 0, 64, 61, 32, 48, true, false, true, 2, 2, 1, 0))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("expected num_attention_heads to be at least 1, found 0");
    }
}
