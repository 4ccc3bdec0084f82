package dev.penumbra.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

class PeftAdapterTest {

    private static final String KEY = "base_model.model.model.decoder.layers.0.self_attn.q_proj.";

    @TempDir
    Path folder;

    private void write(LoraConfig config) throws IOException {
        try (Arena arena = Arena.ofConfined()) {
            Tensor a = Tensor.allocate(arena, DType.F32, Shape.of(4, 8));
            Tensor b = Tensor.allocate(arena, DType.F32, Shape.of(8, 4));
            PeftAdapter.write(folder, config, "tiny", Map.of(KEY + "lora_A.weight", a, KEY + "lora_B.weight", b));
        }
    }

    @Test
    void whatWasWrittenIsReadBack() throws IOException {
        LoraConfig config = new LoraConfig(4, 32, 0.1, Set.of("q_proj"), true);
        write(config);
        try (PeftAdapter read = PeftAdapter.read(folder)) {
            assertThat(read.config()).isEqualTo(config);
            assertThat(read.config().scaling()).isEqualTo(16);
            assertThat(read.baseModel()).isEqualTo("tiny");
            assertThat(read.tensors()).containsOnlyKeys(KEY + "lora_A.weight", KEY + "lora_B.weight");
        }
    }

    private void configure(String json) throws IOException {
        write(LoraConfig.ofRank(4).withTargets("q_proj"));
        Files.writeString(folder.resolve("adapter_config.json"), json);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
            "\"peft_type\": \"IA3\"                              | peft_type: expected LORA, found \"IA3\"",
            "\"task_type\": \"SEQ_CLS\"                          | task_type: expected CAUSAL_LM, found \"SEQ_CLS\"",
            "\"bias\": \"all\"                                   | bias: expected none, found \"all\"",
            "\"r\": 0                                            | r: expected a rank of 1 or more, found 0",
            "\"r\": 2.5                                          | r: expected a rank of 1 or more, found 2.5",
            "\"r\": \"4\"                                        | r: expected a rank of 1 or more, found \"4\"",
            "\"r\": 8                                            | q_proj.lora_A.weight: expected shape [r, in] with the configuration's r = 8, found [4, 8]",
            "\"lora_alpha\": null                                | lora_alpha: expected a number, found null",
            "\"lora_alpha\": -1                                  | lora_alpha",
            "\"lora_dropout\": 1.0                               | lora_dropout",
            "\"use_rslora\": \"yes\"                             | use_rslora: expected true or false",
            "\"init_lora_weights\": \"pissa\"                    | init_lora_weights: expected true, false",
            "\"init_lora_weights\": \"pissa_niter_16\"           | init_lora_weights: expected true, false",
            "\"init_lora_weights\": \"olora\"                    | init_lora_weights: expected true, false",
            "\"init_lora_weights\": \"eva\"                      | init_lora_weights: expected true, false",
            "\"init_lora_weights\": \"loftq\"                    | init_lora_weights: expected true, false",
            "\"init_lora_weights\": \"corda\"                    | init_lora_weights: expected true, false",
            "\"init_lora_weights\": \"lora_ga\"                  | init_lora_weights: expected true, false",
            "\"target_modules\": [\"v_proj\"]                    | found tensors of model.decoder.layers.0.self_attn.q_proj beside [\"v_proj\"]",
            "\"target_modules\": [\"q_proj\", \"k_proj\"]        | expected tensors for every target module, found none for [k_proj]",
            "\"target_modules\": \"(\"                           | target_modules: expected a regular expression",
            "\"target_modules\": \".*v_proj\"                    | found tensors of model.decoder.layers.0.self_attn.q_proj",
            "\"target_modules\": \"all-linear\"                  | found tensors of model.decoder.layers.0.self_attn.q_proj",
            "\"target_modules\": null                            | target_modules: expected names of modules",
            "\"target_modules\": []                              | target_modules: expected names of modules",
            "\"target_modules\": [3]                             | target_modules: expected names of modules"
    })
    void aKeyThatIsNotAsExpectedIsNamed(String entry, String message) throws IOException {
        JsonMapper mapper = new JsonMapper();
        ObjectNode json = (ObjectNode) mapper.readTree("{\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"r\":4}");
        json.setAll((ObjectNode) mapper.readTree("{" + entry + "}"));
        configure(json.toString());
        assertThatThrownBy(() -> PeftAdapter.read(folder)).isInstanceOf(IOException.class)
                .hasMessageContaining(folder.toString()).hasMessageContaining(message);
    }

    /** Every field of PEFT 0.21's LoraConfig that turns on what is not computed, and one that is not known yet. */
    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
            "use_dora                | true", "use_qalora              | true", "lora_bias               | true",
            "fan_in_fan_out          | true", "ensure_weight_tying     | true", "layer_replication       | [[0,4],[2,5]]",
            "rank_pattern            | {\"q_proj\":2}", "alpha_pattern           | {\"q_proj\":2}",
            "modules_to_save         | [\"lm_head\"]", "layers_to_transform     | 0",
            "layers_to_transform     | [0]", "exclude_modules         | [\"k_proj\"]",
            "exclude_modules         | \".*k_proj\"", "trainable_token_indices | [5]",
            "target_parameters       | [\"x\"]", "alora_invocation_tokens | [1,2]", "megatron_config         | {\"a\":1}",
            "loftq_config            | {\"loftq_bits\":4}", "eva_config              | {\"rho\":2.0}",
            "corda_config            | {\"a\":1}", "lora_ga_config          | {\"a\":1}",
            "velora_config           | {\"a\":1}", "monteclora_config       | {\"a\":1}",
            "arrow_config            | {\"a\":1}", "kasa_config             | {\"beta\":1}",
            "use_bdlora              | {\"nblocks\":2}", "use_the_next_idea       | 1"
    })
    void aVariantIsRefusedByName(String key, String value) throws IOException {
        configure("{\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"r\":4,\"" + key + "\":" + value + "}");
        assertThatThrownBy(() -> PeftAdapter.read(folder)).isInstanceOf(IOException.class)
                .hasMessageContaining("adapter_config.json: expected plain LoRA, found " + key + " = ");
    }

    @Test
    void whatTurnsNothingOnIsPassedOver() throws IOException {
        configure("""
                {"peft_type": "LORA", "task_type": null, "target_modules": ["self_attn.q_proj"], "r": 4, "lora_alpha": 8,
                 "use_rslora": true, "init_lora_weights": "gaussian", "bias": "none", "rank_pattern": {}, "use_dora": false,
                 "modules_to_save": null, "layers_to_transform": [], "exclude_modules": "", "peft_version": "0.21.0",
                 "megatron_core": "megatron.core", "qalora_group_size": 16, "inference_mode": true, "enable_lora": null,
                 "runtime_config": {"ephemeral_gpu_offload": false}, "base_model_name_or_path": null}""");
        try (PeftAdapter read = PeftAdapter.read(folder)) {
            assertThat(read.config()).isEqualTo(new LoraConfig(4, 8, 0, Set.of("q_proj"), true));
            assertThat(read.config().scaling()).isEqualTo(8 / Math.sqrt(4));
            assertThat(read.baseModel()).isEmpty();
        }
    }

    @Test
    void aRegularExpressionNamesTargets() throws IOException {
        configure("{\"peft_type\":\"LORA\",\"target_modules\":\".*decoder.*[qv]_proj\",\"r\":4}");
        try (PeftAdapter read = PeftAdapter.read(folder)) {
            assertThat(read.config()).isEqualTo(new LoraConfig(4, 8, 0, Set.of("q_proj"), false));
        }
    }

    private void writeTensors(Map<String, Tensor> tensors) throws IOException {
        configure("{\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"r\":2}");
        SafetensorsWriter.write(folder.resolve("adapter_model.safetensors"), tensors, Map.of());
    }

    @Test
    void tensorsThatAreNotPlainPairsAreNamed() throws IOException {
        try (Arena arena = Arena.ofConfined()) {
            Tensor a = Tensor.allocate(arena, DType.F32, Shape.of(2, 8));
            Tensor b = Tensor.allocate(arena, DType.F32, Shape.of(8, 2));
            Tensor broken = Tensor.of(arena, 1, 1, 1, Float.NaN).reshape(2, 2);
            Tensor whole = Tensor.allocate(arena, DType.I32, Shape.of(2, 8));
            refuses(Map.of(), "adapter_model.safetensors: expected tensors of adapted modules, found none");
            refuses(Map.of(KEY + "lora_A.weight", a), "expected a tensor " + KEY + "lora_B.weight beside the other half");
            refuses(Map.of(KEY + "lora_B.weight", b), "expected a tensor " + KEY + "lora_A.weight beside the other half");
            refuses(Map.of(KEY + "lora_A.weight", a, KEY + "lora_B.weight", a),
                    "lora_B.weight: expected shape [out, r] with the configuration's r = 2, found [2, 8]");
            refuses(Map.of(KEY + "lora_A.weight", broken, KEY + "lora_B.weight", b),
                    "lora_A.weight: expected finite weights, found NaN at element 3");
            refuses(Map.of(KEY + "lora_A.weight", whole, KEY + "lora_B.weight", b), "expected F32, BF16 or F16, found I32");
            for (String other : new String[]{KEY + "lora_magnitude_vector.weight", KEY + "lora_A.default.weight",
                    KEY + "base_layer.weight", "q_proj.lora_A.weight", "base_model.model.lm_head.weight"}) {
                refuses(Map.of(KEY + "lora_A.weight", a, KEY + "lora_B.weight", b, other, a), "found " + other);
            }
        }
    }

    private void refuses(Map<String, Tensor> tensors, String message) throws IOException {
        writeTensors(tensors);
        assertThatThrownBy(() -> PeftAdapter.read(folder)).isInstanceOf(IOException.class)
                .hasMessageContaining(folder.toString()).hasMessageContaining(message);
    }
}
