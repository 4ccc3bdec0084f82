package dev.penumbra.io;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.Tuple;
import net.jqwik.api.lifecycle.AfterContainer;
import net.jqwik.api.lifecycle.BeforeContainer;

/** Whatever bytes a weights file has: it is read as what it says, or refused by the reader's own exception, which names it. */
class ReaderFuzzTest {

    private static Path folder;

    @BeforeContainer
    static void makeFolder() throws IOException {
        folder = Files.createTempDirectory("fuzz");
    }

    @AfterContainer
    static void removeFolder() throws IOException {
        AtomicFiles.deleteTree(folder);
    }

    /** Opens, reads every tensor, and checks that safetensors' bytes are each owned once. */
    private static void open(String name, byte[] bytes) throws IOException {
        Path path = Files.write(folder.resolve(name), bytes);
        try (WeightsFile file = name.endsWith(".bin") ? TorchFile.open(path) : SafetensorsFile.open(path)) {
            for (String tensor : file.entries().keySet()) {
                try {
                    assertThat(file.tensor(tensor).byteSize()).isEqualTo(file.bytes(tensor).byteSize());
                } catch (WeightsFileException refused) {
                    assertThat(refused).hasMessageContaining(name).hasMessageContaining(tensor);
                }
            }
        } catch (WeightsFileException refused) {
            assertThat(refused).hasMessageContaining(path.toString());
        }
    }

    private static byte[] safetensors(String header, int dataBytes) {
        byte[] text = header.getBytes(StandardCharsets.UTF_8);
        return ByteBuffer.allocate(8 + text.length + dataBytes).order(ByteOrder.LITTLE_ENDIAN).putLong(text.length).put(text)
                .array();
    }

    @Property(tries = 1000)
    void anyBytes(@ForAll byte[] bytes) throws IOException {
        open("any.safetensors", bytes);
        open("any.bin", bytes);
    }

    @Property(tries = 1000)
    void anyHeader(@ForAll String header) throws IOException {
        open("header.safetensors", safetensors(header, 8));
        open("header.safetensors", safetensors("{\"a\":" + header + "}", 8));
        open("header.safetensors", safetensors("{\"__metadata__\":" + header + "}", 0));
    }

    /** Headers that are nearly right: the numbers and types of a real one, drawn at random. */
    @Provide
    Arbitrary<String> headers() {
        Arbitrary<String> number = Arbitraries.of("0", "1", "2", "4", "8", "12", "16", "-1", "1.5", "null", "\"4\"",
                "4294967296", "9223372036854775807", "9223372036854775808", "1e3", "[]");
        Arbitrary<String> list = number.list().ofMaxSize(5).map(items -> "[" + String.join(",", items) + "]");
        Arbitrary<String> dtype = Arbitraries.of("\"F32\"", "\"BF16\"", "\"U8\"", "\"I64\"", "\"F8_E4M3\"", "\"f32\"", "1",
                "null");
        Arbitrary<String> entry = Combinators.combine(dtype, list, list).as(
                (type, shape, offsets) -> "{\"dtype\":" + type + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets
                        + "}");
        Arbitrary<String> name = Arbitraries.of("a", "b", "c", "", "__metadata__", "\\u0000", "\\ud800", "ü");
        return Combinators.combine(name, entry).as((key, value) -> "\"" + key + "\":" + value).list().ofMaxSize(4)
                .map(entries -> "{" + String.join(",", entries) + "}");
    }

    @Property(tries = 2000)
    void aHeaderThatIsNearlyRight(@ForAll("headers") String header, @ForAll("dataBytes") int dataBytes) throws IOException {
        open("near.safetensors", safetensors(header, dataBytes));
    }

    @Provide
    Arbitrary<Integer> dataBytes() {
        return Arbitraries.of(0, 1, 4, 8, 12, 16, 32);
    }

    /** A change of a few bytes, and a cut: position and value, as fractions of what the file has. */
    @Provide
    Arbitrary<List<Tuple.Tuple2<Double, Byte>>> changes() {
        Arbitrary<Byte> value = Arbitraries.oneOf(Arbitraries.bytes(), Arbitraries.of((byte) 0, (byte) -1, (byte) 0x7f));
        return Combinators.combine(Arbitraries.doubles().between(0, 1), value).as(Tuple::of).list().ofMaxSize(4);
    }

    private static byte[] changed(byte[] whole, List<Tuple.Tuple2<Double, Byte>> changes, double kept) {
        byte[] bytes = Arrays.copyOf(whole, (int) Math.ceil(whole.length * kept));
        for (Tuple.Tuple2<Double, Byte> change : changes) {
            if (bytes.length > 0) {
                bytes[(int) (change.get1() * (bytes.length - 1))] = change.get2();
            }
        }
        return bytes;
    }

    @Property(tries = 2000)
    void aChangedSafetensorsFile(@ForAll("changes") List<Tuple.Tuple2<Double, Byte>> changes, @ForAll("kept") double kept)
            throws IOException {
        String header = "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                + "\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]}}";
        open("changed.safetensors", changed(safetensors(header, 9), changes, kept));
    }

    @Property(tries = 2000)
    void aChangedTorchFile(@ForAll("changes") List<Tuple.Tuple2<Double, Byte>> changes, @ForAll("kept") double kept,
            @ForAll("torchFiles") String name) throws IOException {
        byte[] whole = Files.readAllBytes(Path.of("src/test/resources/torch", name));
        open("changed.bin", changed(whole, changes, kept));
    }

    @Provide
    Arbitrary<Double> kept() {
        return Arbitraries.frequencyOf(Tuple.of(3, Arbitraries.just(1.0)), Tuple.of(1, Arbitraries.doubles().between(0, 1)));
    }

    @Provide
    Arbitrary<String> torchFiles() {
        return Arbitraries.of("state-dict.bin", "plain-dict.bin", "protocol-4.bin");
    }

    /** Programs for the pickle's machine: its opcodes in any order, most of them with arguments that fit. */
    @Provide
    Arbitrary<byte[]> pickles() {
        Arbitrary<byte[]> opcode = Arbitraries
                .of("(", "t", ")", "}", "]", "N", "\u0088", "\u0089", "s", "u", "a", "e", "R", "b",
                        "Q", ".", "\u0085", "\u0086", "\u0087", "\u0094", "\u0093", "h\0", "q\0", "h\1", "q\1", "K\2",
                        "M\2\0", "J\2\0\0\0",
                        "\u008a\1\2", "\u008a\t", "X\1\0\0\0a", "X\7\0\0\0storage", "\u008c\1b", "ctorch\nFloatStorage\n",
                        "ccollections\nOrderedDict\n", "ctorch._utils\n_rebuild_tensor_v2\n",
                        "ctorch._utils\n_rebuild_parameter\n",
                        "cos\nsystem\n", "\u0095\0\0\0\0\0\0\0\0", "\u0080\2", "0")
                .map(text -> text.getBytes(StandardCharsets.ISO_8859_1));
        Arbitrary<byte[]> any = Arbitraries.bytes().array(byte[].class).ofMaxSize(3);
        return Arbitraries.frequencyOf(Tuple.of(20, opcode), Tuple.of(1, any)).list().ofMaxSize(60).map(pieces -> {
            ByteBuffer bytes = ByteBuffer.allocate(pieces.stream().mapToInt(piece -> piece.length).sum());
            pieces.forEach(bytes::put);
            return bytes.array();
        });
    }

    @Property(tries = 10000)
    void anyPickle(@ForAll("pickles") byte[] pickle) {
        try {
            Unpickler.read(pickle, message -> new TorchFileException(Path.of("any.pkl"), message));
        } catch (TorchFileException refused) {
            assertThat(refused).hasMessageContaining("any.pkl: ");
        }
    }

    @Provide
    Arbitrary<Map<String, long[]>> shapes() {
        Arbitrary<String> names = Arbitraries.strings().withChars("ab.\"\\\n\u0000\u00fc\u4e2d").ofMaxLength(6);
        return Arbitraries.maps(names, Arbitraries.longs().between(0, 5).array(long[].class).ofMinSize(1).ofMaxSize(4))
                .ofMaxSize(6);
    }

    @Property(tries = 200)
    void whatIsWrittenIsReadBack(@ForAll("shapes") Map<String, long[]> shapes, @ForAll long seed) throws IOException {
        Random random = new Random(seed);
        Path path = folder.resolve("round.safetensors");
        try (Arena arena = Arena.ofConfined()) {
            Map<String, Tensor> written = new HashMap<>();
            shapes.forEach((name, dims) -> {
                Tensor tensor = Tensor.allocate(arena, DType.values()[random.nextInt(DType.values().length)],
                        Shape.of(dims));
                byte[] bytes = new byte[(int) tensor.byteSize()];
                random.nextBytes(bytes);
                MemorySegment.copy(MemorySegment.ofArray(bytes), 0, tensor.segment(), 0, bytes.length);
                written.put(name, tensor);
            });
            SafetensorsWriter.write(path, written, Map.of("seed", String.valueOf(seed)));
            try (SafetensorsFile read = SafetensorsFile.open(path)) {
                assertThat(read.entries().keySet()).isEqualTo(shapes.keySet());
                assertThat(read.metadata()).isEqualTo(Map.of("seed", String.valueOf(seed)));
                written.forEach((name, tensor) -> {
                    assertThat(read.tensor(name).dtype()).isEqualTo(tensor.dtype());
                    assertThat(read.tensor(name).shape()).isEqualTo(tensor.shape());
                    assertThat(read.bytes(name).mismatch(tensor.segment())).isEqualTo(-1);
                });
            }
        }
    }
}
