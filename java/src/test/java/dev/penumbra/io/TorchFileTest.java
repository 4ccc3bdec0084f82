package dev.penumbra.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.zip.ZipFile;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** On files that torch.save wrote; {@code src/test/python/make_torch_fixtures.py} made them. */
class TorchFileTest {

    private static final Path FIXTURES = Path.of("src/test/resources/torch");

    @TempDir
    Path folder;

    private static float[] counted(int from, int to) {
        float[] values = new float[to - from];
        for (int i = 0; i < values.length; i++) {
            values[i] = (from + i) * 0.5f;
        }
        return values;
    }

    @Test
    void aStateDictionaryIsReadWithItsSharedStorages() throws IOException {
        try (TorchFile file = TorchFile.open(FIXTURES.resolve("state-dict.bin"))) {
            assertThat(file.entries()).containsOnlyKeys("decoder.embed.weight", "head.weight");
            assertThat(file.tensor("head.weight").dtype()).isEqualTo(DType.F16);
            assertThat(file.tensor("head.weight").shape()).isEqualTo(Shape.of(5, 4));
            assertThat(file.tensor("head.weight").toFloats()).containsExactly(counted(0, 20));
            assertThat(file.tensor("decoder.embed.weight").address()).isEqualTo(file.tensor("head.weight").address());
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"plain-dict.bin", "protocol-4.bin"})
    void everyTypeIsReadAndViewsBeginWhereTheyShould(String name) throws IOException {
        try (TorchFile file = TorchFile.open(FIXTURES.resolve(name))) {
            assertThat(file.tensor("bf16").toFloats()).containsExactly(counted(0, 6));
            assertThat(file.tensor("scalar").toFloats()).containsExactly(7.5f);
            assertThat(file.tensor("parameter").toFloats()).containsExactly(counted(0, 2));
            assertThat(file.tensor("rows").toFloats()).containsExactly(counted(4, 8));
            assertThat(file.tensor("thin").shape()).isEqualTo(Shape.of(1, 4));
            assertThat(file.tensor("thin").toFloats()).containsExactly(counted(0, 4));
            assertThat(file.tensor("empty").shape()).isEqualTo(Shape.of(0, 3));
            assertThat(file.entries().get("f64")).isEqualTo(entryOf(file, "f64", "F64", List.of(2L), 16));
            assertThat(file.entries().get("i64")).isEqualTo(entryOf(file, "i64", "I64", List.of(3L), 24));
            assertThat(file.entries().get("bool")).isEqualTo(entryOf(file, "bool", "BOOL", List.of(2L), 2));
            assertThatThrownBy(() -> file.tensor("i64")).isInstanceOf(TorchFileException.class)
                    .hasMessageContaining("plain-dict.bin".equals(name) ? "plain-dict.bin: tensor i64" : "tensor i64");
        }
    }

    private static WeightsFile.Entry entryOf(TorchFile file, String name, String dtype, List<Long> shape, long bytes) {
        long begin = file.entries().get(name).begin();
        return new WeightsFile.Entry(dtype, shape, begin, begin + bytes);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
            "callable.bin       | posix.system, which is not loaded",
            "transposed.bin     | tensor a: expected contiguous elements of shape [3, 2], found strides [1, 3]",
            "negated.bin        | with metadata",
            "training-state.bin | found a dictionary under model",
            "legacy.bin         | since PyTorch 1.6",
    })
    void whatIsNotATensorAsItLiesIsRefusedByName(String name, String message) {
        assertThatThrownBy(() -> TorchFile.open(FIXTURES.resolve(name))).isInstanceOf(TorchFileException.class)
                .hasMessageContaining(name).hasMessageContaining(message);
    }

    @Test
    void everyTruncationIsNamed() throws IOException {
        byte[] whole = Files.readAllBytes(FIXTURES.resolve("state-dict.bin"));
        for (int length = 0; length < whole.length; length++) {
            Path file = Files.write(folder.resolve("cut.bin"), Arrays.copyOf(whole, length));
            assertThatThrownBy(() -> TorchFile.open(file)).isInstanceOf(TorchFileException.class)
                    .hasMessageContaining("cut.bin");
        }
    }

    @Test
    void aZip64FileIsRead() throws IOException {
        Path file = folder.resolve("wide.bin");
        Zip64.rewrite(FIXTURES.resolve("state-dict.bin"), file);
        try (ZipFile known = new ZipFile(file.toFile()); TorchFile read = TorchFile.open(file)) {
            // What the JDK reads as well is a zip64 file, not only this test's idea of one.
            assertThat(known.size()).isEqualTo(7);
            assertThat(read.tensor("head.weight").toFloats()).containsExactly(counted(0, 20));
        }
    }

    @Test
    void aFolderWithOnlyTorchFilesIsAModelFolder() throws IOException {
        Files.writeString(folder.resolve("config.json"), "{}");
        Files.copy(FIXTURES.resolve("state-dict.bin"), folder.resolve("a.bin"));
        Files.copy(FIXTURES.resolve("plain-dict.bin"), folder.resolve("b.bin"));
        Files.writeString(folder.resolve("pytorch_model.bin.index.json"),
                "{\"weight_map\":{\"head.weight\":\"a.bin\",\"decoder.embed.weight\":\"a.bin\",\"rows\":\"b.bin\"}}");
        try (ModelFolder sharded = ModelFolder.open(folder)) {
            assertThat(sharded.tensorNames()).containsExactly("decoder.embed.weight", "head.weight", "rows");
            assertThat(sharded.tensor("rows", 2, 2).toFloats()).containsExactly(counted(4, 8));
        }
        Files.copy(FIXTURES.resolve("state-dict.bin"), folder.resolve("pytorch_model.bin"));
        try (ModelFolder single = ModelFolder.open(folder)) {
            assertThat(single.decoderPrefix()).isEqualTo("decoder.");
            assertThat(single.tensorNames()).containsExactly("decoder.embed.weight", "head.weight");
        }
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3, 4})
    void randomTensorsOfALivePyTorchAreThoseOfItsSafetensors(int seed) throws Exception {
        String python = System.getenv("PENUMBRA_PYTHON");
        assumeTrue(python != null, "PENUMBRA_PYTHON names no Python with torch and safetensors");
        Process process = new ProcessBuilder(python, "src/test/python/make_torch_fixtures.py", folder.toString(), "--random",
                Integer.toString(seed)).inheritIO().start();
        assertThat(process.waitFor()).isZero();
        try (TorchFile torch = TorchFile.open(folder.resolve("pytorch_model.bin"));
                SafetensorsFile expected = SafetensorsFile.open(folder.resolve("model.safetensors"))) {
            assertThat(torch.entries().keySet()).isEqualTo(expected.entries().keySet());
            for (String name : expected.entries().keySet()) {
                assertThat(torch.entries().get(name).dtype()).isEqualTo(expected.entries().get(name).dtype());
                assertThat(torch.entries().get(name).shape()).isEqualTo(expected.entries().get(name).shape());
                MemorySegment bytes = torch.bytes(name);
                assertThat(bytes.mismatch(expected.bytes(name))).as("seed %d, %s", seed, name).isEqualTo(-1);
            }
        }
    }
}
