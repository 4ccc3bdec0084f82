package dev.penumbra.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assumptions.assumeThat;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class ModelFolderTest {

    private static final int MIB = 1 << 20;

    @TempDir
    Path folder;

    private static void write(Path file, Map<String, Tensor> tensors) throws IOException {
        SafetensorsWriter.write(file, tensors, Map.of());
        Path config = file.resolveSibling("config.json");
        if (!Files.exists(config)) {
            Files.writeString(config, "{}");
        }
    }

    @Test
    void aReleasedTensorIsNotResidentAndReadsTheSameAgain() throws IOException {
        Path file = folder.resolve("model.safetensors");
        float[] values = new float[2 * MIB];
        for (int i = 0; i < values.length; i++) {
            values[i] = i;
        }
        try (Arena arena = Arena.ofConfined()) {
            write(file, Map.of("a", Tensor.of(arena, values), "b", Tensor.of(arena, values)));
        }
        try (ModelFolder model = ModelFolder.open(folder)) {
            assertThat(model.tensor("a").toFloats()).isEqualTo(values);
            assertThat(model.tensor("b").toFloats()).isEqualTo(values);
            long both = ResidentPages.bytes(file);
            assertThat(both).isGreaterThanOrEqualTo(16L * MIB);
            model.release("a");
            assertThat(ResidentPages.bytes(file)).isBetween(7L * MIB, 9L * MIB);
            assertThat(model.tensor("a").toFloats()).isEqualTo(values);
        }
    }

    @Test
    void theHashNamesTheWeightsWhereverTheyLie() throws IOException {
        Path single = Files.createDirectory(folder.resolve("single"));
        Path sharded = Files.createDirectory(folder.resolve("sharded"));
        Path other = Files.createDirectory(folder.resolve("other"));
        try (Arena arena = Arena.ofConfined()) {
            Tensor a = Tensor.of(arena, 1f, 2f);
            Tensor b = Tensor.of(arena, 3f);
            write(single.resolve("model.safetensors"), Map.of("a", a, "b", b));
            write(sharded.resolve("x.safetensors"), Map.of("a", a));
            write(sharded.resolve("y.safetensors"), Map.of("b", b));
            Files.writeString(sharded.resolve("model.safetensors.index.json"),
                    "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}");
            write(other.resolve("model.safetensors"), Map.of("a", a.reshape(2, 1), "b", b));
        }
        String hash = hash(single);
        // printf '1 a F32 [2] \0\0\x80?\0\0\0@1 b F32 [1] \0\0@@' | sha256sum
        assertThat(hash).isEqualTo("5535dfeb0a1de4e755d1570e76b1fc6e7a48148d6b2eb6af9497efb346686d86")
                .isEqualTo(hash(sharded));
        assertThat(hash(other)).isNotEqualTo(hash);
    }

    @Test
    void aSampledHashIsOfATensorsEnds() throws IOException {
        byte[] whole = new byte[3 * 4096];
        String same = sampled(whole);
        for (int changed : new int[]{0, 4095, 2 * 4096, whole.length - 1}) {
            byte[] other = whole.clone();
            other[changed]++;
            assertThat(sampled(other)).as("byte %d", changed).isNotEqualTo(same);
        }
        byte[] between = whole.clone();
        between[4096]++;
        assertThat(sampled(between)).isEqualTo(same);
        assertThat(sampled(new byte[4097])).as("ends that meet").isNotEqualTo(sampled(new byte[4096]));
    }

    private String sampled(byte[] values) throws IOException {
        Path file = folder.resolve("model.safetensors");
        try (Arena arena = Arena.ofConfined()) {
            Tensor tensor = Tensor.allocate(arena, DType.U8, Shape.of(values.length));
            tensor.segment().copyFrom(MemorySegment.ofArray(values));
            write(file, Map.of("a", tensor));
        }
        try (ModelFolder model = ModelFolder.open(folder)) {
            return model.sampledWeightsHash();
        }
    }

    @Test
    void hashingKeepsNoPages() throws IOException {
        try (Arena arena = Arena.ofConfined()) {
            write(folder.resolve("model.safetensors"), Map.of("a", Tensor.allocate(arena, DType.U8, Shape.of(40 * MIB))));
        }
        try (ModelFolder model = ModelFolder.open(folder)) {
            model.weightsHash();
            assertThat(ResidentPages.bytes(folder.resolve("model.safetensors"))).isLessThan(MIB);
        }
    }

    private static String hash(Path folder) throws IOException {
        try (ModelFolder model = ModelFolder.open(folder)) {
            return model.weightsHash();
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
            "{\"weight_map\":{\"a\":\"../x.safetensors\"}} | tensor a: expected the name of a file beside it, found \"../x.safetensors\"",
            "{\"weight_map\":{\"a\":3}}                    | tensor a: expected the name of a file beside it, found 3",
            "{\"weight_map\":{\"a\":\"..\"}}               | expected a shard that model.safetensors.index.json names",
            "{\"weight_map\":{\"a\":\"z.safetensors\"}}    | z.safetensors: expected a shard that model.safetensors.index.json names",
            "{\"weight_map\":{\"b\":\"x.safetensors\"}}    | expected tensor b in x.safetensors, found none",
            "{}                                            | expected a weight_map with tensors",
            "[]                                            | expected a JSON object",
            "{                                             | model.safetensors.index.json: expected JSON"
    })
    void aBrokenIndexIsNamed(String index, String message) throws IOException {
        try (Arena arena = Arena.ofConfined()) {
            write(folder.resolve("x.safetensors"), Map.of("a", Tensor.of(arena, 1f)));
        }
        Files.writeString(folder.resolve("model.safetensors.index.json"), index);
        assertThatThrownBy(() -> ModelFolder.open(folder)).isInstanceOf(IOException.class).hasMessageContaining(message);
    }

    @Test
    void aFolderThatMayNotBeReadIsNamed() throws IOException {
        Path hidden = Files.createDirectory(folder.resolve("hidden"));
        Files.setPosixFilePermissions(hidden, PosixFilePermissions.fromString("---------"));
        try {
            assumeThat(Files.isReadable(hidden)).as("to root nothing is hidden").isFalse();
            assertThatThrownBy(() -> ModelFolder.open(hidden)).isInstanceOf(IOException.class)
                    .hasMessage(hidden + ": expected a model folder, found no permission to read it");
        } finally {
            Files.setPosixFilePermissions(hidden, PosixFilePermissions.fromString("rwx------"));
        }
    }

    @Test
    void whatIsMissingIsNamed() throws IOException {
        assertThatThrownBy(() -> ModelFolder.open(folder.resolve("none"))).hasMessageContaining("expected a model folder");
        assertThatThrownBy(() -> ModelFolder.open(folder)).hasMessageContaining("config.json: expected a file, found none");
        Files.writeString(folder.resolve("config.json"), "{}");
        assertThatThrownBy(() -> ModelFolder.open(folder)).hasMessageContaining("model.safetensors, pytorch_model.bin");
        try (Arena arena = Arena.ofConfined()) {
            write(folder.resolve("model.safetensors"), Map.of("a", Tensor.of(arena, 1f)));
        }
        try (ModelFolder model = ModelFolder.open(folder)) {
            assertThatThrownBy(() -> model.tensor("b")).isInstanceOf(IOException.class)
                    .hasMessageContaining("expected a tensor b, found none");
            assertThatThrownBy(() -> model.tensor("a", 2, 3)).isInstanceOf(IOException.class)
                    .hasMessageContaining("tensor a: expected shape [2, 3], found [1]");
        }
    }
}
