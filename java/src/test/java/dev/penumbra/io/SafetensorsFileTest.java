package dev.penumbra.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class SafetensorsFileTest {

    @TempDir
    Path folder;

    private Path fileOf(String header, int dataBytes) throws IOException {
        byte[] text = header.getBytes(StandardCharsets.UTF_8);
        ByteBuffer bytes = ByteBuffer.allocate(8 + text.length + dataBytes).order(ByteOrder.LITTLE_ENDIAN);
        bytes.putLong(text.length).put(text);
        return Files.write(folder.resolve("weights.safetensors"), bytes.array());
    }

    @Test
    void whatWasWrittenIsReadBack() throws IOException {
        Path file = folder.resolve("a.safetensors");
        try (Arena arena = Arena.ofConfined()) {
            Tensor half = Tensor.allocate(arena, DType.BF16, Shape.of(3, 2));
            half.segment().set(java.lang.foreign.ValueLayout.JAVA_SHORT, 2, (short) 0x3fc0);
            SafetensorsWriter.write(file, Map.of("b", half, "a", Tensor.of(arena, 1f, -2f, 3.5f)), Map.of("format", "pt"));
        }
        try (SafetensorsFile read = SafetensorsFile.open(file)) {
            assertThat(read.entries().keySet()).containsExactly("a", "b");
            assertThat(read.metadata()).containsEntry("format", "pt");
            assertThat(read.tensor("a").toFloats()).containsExactly(1f, -2f, 3.5f);
            assertThat(read.tensor("b").shape()).isEqualTo(Shape.of(3, 2));
            assertThat(read.tensor("b").toFloats()).containsExactly(0f, 1.5f, 0f, 0f, 0f, 0f);
        }
    }

    @Test
    void aTensorOfAClosedFileThrows() throws IOException {
        Tensor tensor;
        try (SafetensorsFile file = SafetensorsFile
                .open(fileOf("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8))) {
            tensor = file.tensor("a");
        }
        assertThatThrownBy(tensor::toFloats).isInstanceOf(IllegalStateException.class);
        assertThatThrownBy(tensor::address).isInstanceOf(IllegalStateException.class);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
            "{\"a\"                                                                                    | 0  | in JSON",
            "[]                                                                                       | 0  | JSON object",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}                           | 4  | truncated",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}                           | 12 | no tensor owns",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}                           | 8  | expected 12 bytes",
            "{\"a\":{\"dtype\":\"F8\",\"shape\":[2],\"data_offsets\":[0,8]}}                            | 8  | expected a dtype among",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}                          | 8  | whole numbers",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}                           | 8  | data_offsets [8, 0]",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}} | 8 | JSON",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}} | 12 | overlaps",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}                           | 8  | gap",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,8]}}       | 8  | fits in memory",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4,0],\"data_offsets\":[0,0]}}     | 0  | fits in memory",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2.5],\"data_offsets\":[0,8]}}                         | 8  | tensor a: expected whole numbers of 0 or more in shape",
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,99999999999999999999]}}        | 8  | tensor a: expected whole numbers",
            "{\"a\":{\"dtype\":4,\"shape\":[2],\"data_offsets\":[0,8]}}                                 | 8  | tensor a: expected dtype",
            "{\"a\":[]}                                                                                | 0  | tensor a: expected dtype",
            "{} {}                                                                                    | 0  | in JSON",
            "{\"__metadata__\":{\"n\":1}}                                                               | 0  | metadata of strings",
            "{\"__metadata__\":[]}                                                                     | 0  | expected __metadata__ to be an object of strings, found []",
            "{\"__metadata__\":\"pt\"}                                                                 | 0  | expected __metadata__ to be an object of strings",
            "{\"__metadata__\":null}                                                                   | 0  | expected __metadata__ to be an object of strings"
    })
    void aMalformedHeaderIsNamed(String header, int dataBytes, String message) throws IOException {
        Path file = fileOf(header, dataBytes);
        assertThatThrownBy(() -> SafetensorsFile.open(file))
                .isInstanceOf(SafetensorsException.class)
                .hasMessageContaining("weights.safetensors")
                .hasMessageContaining(message);
    }

    @ParameterizedTest
    @CsvSource({"1099511627776, 1099511627776", "-1, 18446744073709551615", "9223372036854775807, 9223372036854775807",
            "0, 0",
            "9, 9"})
    void aHeaderLengthThatTheFileDoesNotHaveIsNamed(long length, String shown) throws IOException {
        Path file = Files.write(folder.resolve("a"),
                ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN).putLong(0, length).array());
        assertThatThrownBy(() -> SafetensorsFile.open(file)).isInstanceOf(SafetensorsException.class)
                .hasMessageContaining("expected a header of 2 to 8 bytes, found a length of " + shown);
    }

    @Test
    void aHeaderThatIsNotUtf8IsNamed() throws IOException {
        Path file = Files.write(folder.resolve("a"), new byte[]{4, 0, 0, 0, 0, 0, 0, 0, '{', '"', (byte) 0xff, '"'});
        assertThatThrownBy(() -> SafetensorsFile.open(file)).isInstanceOf(SafetensorsException.class)
                .hasMessageContaining("expected a header in UTF-8");
    }
}
