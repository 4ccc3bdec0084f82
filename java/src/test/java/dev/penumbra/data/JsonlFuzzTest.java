package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Combinators;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;
import net.jqwik.api.lifecycle.AfterContainer;
import net.jqwik.api.lifecycle.BeforeContainer;

/** Whatever bytes a data file has: it is read as samples, or refused by a DataException that names it and the line. */
class JsonlFuzzTest {

    private static Path folder;

    @BeforeContainer
    static void makeFolder() throws IOException {
        folder = Files.createTempDirectory("fuzz");
    }

    @AfterContainer
    static void removeFolder() throws IOException {
        Files.deleteIfExists(folder.resolve("data.jsonl"));
        Files.delete(folder);
    }

    private void requireReadOrRefused(byte[] bytes) throws IOException {
        try {
            Dataset data = JsonlReaderTest.read(folder, bytes);
            for (int i = 0; i < data.size(); i++) {
                assertThat(data.get(i).length()).isBetween(1, JsonlReaderTest.OPTIONS.seqLen());
                assertThat(Arrays.stream(data.get(i).ids()).boxed())
                        .allMatch(id -> id >= 0 && id < JsonlReaderTest.OPTIONS.vocabSize());
            }
        } catch (DataException refused) {
            assertThat(refused.getMessage())
                    .matches("(?s)\\Q" + folder.resolve("data.jsonl") + "\\E( line \\d+)?: expected .*");
        }
    }

    @Property(tries = 500)
    void anyBytesAreReadOrRefusedByName(@ForAll byte[] bytes) throws IOException {
        requireReadOrRefused(bytes);
    }

    @Property(tries = 500)
    void anyTextIsReadOrRefusedByName(@ForAll String noise) throws IOException {
        String lines = noise + "\n{\"text\":" + noise + "}\n{\"prompt\":\"a\",\"completion\":\"" + noise + "\"}";
        requireReadOrRefused(lines.getBytes(StandardCharsets.UTF_8));
    }

    /** Lines that are nearly right: the keys of each form, with values of every type. */
    @Provide
    Arbitrary<String> lines() {
        Arbitrary<String> value = Arbitraries.of("\"a\"", "\"\"", "\"\\ud800\"", "\"\\u0000\"", "3", "-1", "1e400", "null",
                "true",
                "[]", "{}", "[1,2]", "[1,999,1000]", "[1.5]", "[99999999999999999999]", "[\"a\"]", "[{}]",
                "[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]",
                "[{\"role\":1,\"content\":\"a\"}]", "[".repeat(2000));
        Arbitrary<String> key = Arbitraries.of("text", "prompt", "completion", "messages", "context", "role", "");
        return Combinators.combine(key, value).as((k, v) -> "\"" + k + "\":" + v).list().ofMaxSize(4)
                .map(entries -> "{" + String.join(",", entries) + "}").list().ofMaxSize(5)
                .map(all -> String.join("\n", all));
    }

    @Property(tries = 2000)
    void linesThatAreNearlyRightAreReadOrRefusedByName(@ForAll("lines") String lines) throws IOException {
        requireReadOrRefused(lines.getBytes(StandardCharsets.UTF_8));
    }

    @Property(tries = 500)
    void idsThatWereWrittenAreReadBack(
            @ForAll @Size(max = 8) List<@IntRange(max = 999) Integer> context,
            @ForAll @Size(min = 2, max = 8) List<@IntRange(max = 999) Integer> completion) throws IOException {
        Sample sample = JsonlReaderTest
                .read(folder, ("{\"context\":" + context + ",\"completion\":" + completion + ",\"id\":7}")
                        .getBytes(StandardCharsets.UTF_8))
                .get(0);
        List<Integer> ids = new ArrayList<>(context);
        ids.addAll(completion);
        assertThat(sample.ids()).containsExactly(ids.stream().mapToInt(Integer::intValue).toArray());
        for (int i = 0; i < ids.size(); i++) {
            assertThat(sample.supervised()[i]).isEqualTo(i >= Math.max(1, context.size()));
        }
    }
}
