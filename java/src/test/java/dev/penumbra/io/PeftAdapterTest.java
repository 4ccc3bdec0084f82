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
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

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
        LoraConfig config = new LoraConfig(4, 32, 0.1, java.util.Set.of("q_proj"), true);
        write(config);
        try (PeftAdapter read = PeftAdapter.read(folder)) {
            assertThat(read.config()).isEqualTo(config);
            assertThat(read.config().scaling()).isEqualTo(16);
            assertThat(read.baseModel()).isEqualTo("tiny");
            assertThat(read.tensors()).containsOnlyKeys(KEY + "lora_A.weight", KEY + "lora_B.weight");
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
            "\"peft_type\":\"IA3\",\"target_modules\":[\"q_proj\"]                          | peft_type LORA",
            "\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"use_dora\":true       | use_dora",
            "\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\"q\":2} | rank_pattern",
            "\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"bias\":\"all\"        | bias",
            "\"peft_type\":\"LORA\",\"target_modules\":[\"v_proj\"]                         | q_proj",
            "\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"],\"r\":0                 | rank r"
    })
    void whatIsNotComputedIsRefusedByName(String json, String message) throws IOException {
        write(LoraConfig.ofRank(4).withTargets("q_proj"));
        Files.writeString(folder.resolve("adapter_config.json"), "{" + json + "}");
        assertThatThrownBy(() -> PeftAdapter.read(folder)).isInstanceOf(IOException.class).hasMessageContaining(message);
    }

    @Test
    void aRegularExpressionNamesTargets() throws IOException {
        write(LoraConfig.ofRank(4).withTargets("q_proj"));
        Files.writeString(folder.resolve("adapter_config.json"),
                "{\"peft_type\":\"LORA\",\"target_modules\":\".*decoder.*[qv]_proj\"}");
        try (PeftAdapter read = PeftAdapter.read(folder)) {
            assertThat(read.config()).isEqualTo(new LoraConfig(8, 8, 0, java.util.Set.of("q_proj"), false));
        }
    }
}
