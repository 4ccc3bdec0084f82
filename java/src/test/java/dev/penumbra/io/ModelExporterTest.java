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

class ModelExporterTest {

    private static final String MODULE = "decoder.layers.0.self_attn.q_proj";

    /** No text in UTF-8. */
    private static final byte[] LATIN = {(byte) 0xE9, 't', (byte) 0xE9};

    @TempDir
    Path folder;

    private void export(String adapted, float... b) throws IOException {
        export(DType.F32, adapted, b);
    }

    private void export(DType dtype, String adapted, float... b) throws IOException {
        Path base = folder.resolve("base");
        Path lora = folder.resolve("lora");
        try (Arena arena = Arena.ofConfined()) {
            Tensor weight = Tensor.allocate(arena, dtype, Shape.of(2, 3));
            if (dtype.isFloat()) {
                weight.copyFrom(new float[]{1, 2, 3, 4, 5, 6});
            }
            SafetensorsWriter.write(base.resolve("model.safetensors"),
                    Map.of(MODULE + ".weight", weight,
                            "decoder.other.bias", Tensor.of(arena, 7f)),
                    Map.of());
            Files.writeString(base.resolve("config.json"), "{\"model_type\":\"opt\"}");
            Files.write(base.resolve("notes.txt"), LATIN);
            PeftAdapter.write(lora, new LoraConfig(1, 2, 0, Set.of("q_proj"), false), "base",
                    Map.of("base_model.model." + adapted + ".lora_A.weight", Tensor.of(arena, 1f, 0f, -1f).reshape(1, 3),
                            "base_model.model." + adapted + ".lora_B.weight", Tensor.of(arena, b).reshape(b.length, 1)));
        }
        try (ModelFolder model = ModelFolder.open(base); PeftAdapter adapter = PeftAdapter.read(lora)) {
            ModelExporter.merge(model, adapter, folder.resolve("out"));
        }
    }

    @Test
    void theMergedWeightIsTheWeightPlusTheScaledProduct() throws IOException {
        export("model." + MODULE, 0.5f, 10f);
        try (ModelFolder merged = ModelFolder.open(folder.resolve("out"))) {
            assertThat(merged.tensor(MODULE + ".weight", 2, 3).toFloats()).containsExactly(2f, 2f, 2f, 24f, 5f, -14f);
            assertThat(merged.tensor("decoder.other.bias").toFloats()).containsExactly(7f);
            assertThat(merged.config().path("model_type").asString()).isEqualTo("opt");
            assertThat(folder.resolve("out/notes.txt")).hasBinaryContent(LATIN);
        }
    }

    @Test
    void aFolderThatHasAnAdapterIsRefused() throws IOException {
        Path out = Files.createDirectories(folder.resolve("out"));
        Files.writeString(out.resolve("adapter_config.json"), "{}");
        assertThatThrownBy(() -> export("model." + MODULE, 0.5f, 10f)).isInstanceOf(IOException.class)
                .hasMessageStartingWith(out + ": expected a folder without an adapter, found one");
        assertThat(out.resolve("model.safetensors")).doesNotExist();
    }

    @Test
    void aFolderThatHasAModelIsRefused() throws IOException {
        Path out = Files.createDirectories(folder.resolve("out"));
        Files.writeString(out.resolve("config.json"), "{}");
        Files.writeString(out.resolve("model.safetensors.index.json"), "{}");
        assertThatThrownBy(() -> export("model." + MODULE, 0.5f, 10f)).isInstanceOf(IOException.class)
                .hasMessage(
                        out + ": expected a folder without a model, found config.json and model.safetensors.index.json: move"
                                + " it away or choose another folder");
        assertThat(out.resolve("config.json")).hasContent("{}");
    }

    @Test
    void aWeightOfIntegersIsRefused() {
        assertThatThrownBy(() -> export(DType.I32, "model." + MODULE, 0.5f, 10f)).isInstanceOf(IOException.class)
                .hasMessage(folder.resolve("base") + ": tensor " + MODULE + ".weight: expected F32, BF16 or F16, found I32");
    }

    @Test
    void aMergeThatChangesNothingIsRefused() {
        assertThatThrownBy(() -> export("model." + MODULE, 0f, 0f)).isInstanceOf(IOException.class)
                .hasMessageStartingWith(folder.resolve("lora") + ": expected an adapter that changes a weight of "
                        + folder.resolve("base") + ", found that merging changes none");
        assertThat(folder.resolve("out")).doesNotExist();
    }

    @Test
    void aSumThatTheWeightsTypeCannotHoldIsRefused() {
        assertThatThrownBy(() -> export(DType.F16, "model." + MODULE, 0f, 40_000f)).isInstanceOf(IOException.class)
                .hasMessage(folder.resolve("lora") + ": weight " + MODULE
                        + ".weight row 1: expected finite merged weights, found Infinity");
        assertThat(folder.resolve("out")).doesNotExist();
    }

    @Test
    void anAdapterThatDoesNotFitTheModelIsRefusedByItsFolder() {
        String module = "model.decoder.layers.9.self_attn.q_proj";
        assertThatThrownBy(() -> export(module, 1f, 1f)).isInstanceOf(IOException.class)
                .hasMessage(
                        folder.resolve("lora") + ": tensor base_model.model." + module + ".lora_A.weight: expected a weight "
                                + module + ".weight in " + folder.resolve("base") + ", found none");
        assertThatThrownBy(() -> export("model." + MODULE, 1f, 1f, 1f, 1f)).isInstanceOf(IOException.class)
                .hasMessage(folder.resolve("lora") + ": weight " + MODULE
                        + ".weight: expected A [r, in] and B [out, r] for its shape [out, in] = [2, 3], found [1, 3] and [4, 1]");
        assertThat(folder.resolve("out")).doesNotExist();
    }
}
