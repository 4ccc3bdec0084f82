package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.data.JsonlOptions.LossOn;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class JsonlReaderTest {

    static final JsonlOptions OPTIONS = new JsonlOptions(16, false, LossOn.COMPLETION, 1000);

    /** One token a character: its code. */
    static final Tokenizer CHARACTERS = new Tokenizer() {
        @Override
        public int[] encode(String text) {
            return text.chars().toArray();
        }

        @Override
        public String decode(int... ids) {
            return new String(ids, 0, ids.length);
        }

        @Override
        public int bosId() {
            return 2;
        }

        @Override
        public int eosId() {
            return 3;
        }

        @Override
        public int padId() {
            return 1;
        }

        @Override
        public void close() {
        }
    };

    @TempDir
    Path folder;

    /** Reads a file of these bytes, {@code data.jsonl} in a folder. */
    static Dataset read(Path folder, byte[] bytes) throws IOException {
        return JsonlReader.read(Files.write(folder.resolve("data.jsonl"), bytes), CHARACTERS, OPTIONS);
    }

    private static Dataset parse(JsonlOptions options, String... lines) {
        return JsonlReader.parse("data.jsonl", List.of(lines), CHARACTERS, options);
    }

    @Test
    void aCompletionIsSupervisedFromItsFirstTokenToItsEnd() {
        Sample sample = parse(OPTIONS, "{\"prompt\":\"ab\",\"completion\":\"cd\"}").get(0);
        assertThat(sample.ids()).containsExactly(2, 'a', 'b', 'c', 'd', 3);
        assertThat(sample.supervised()).containsExactly(false, false, false, true, true, true);
    }

    @Test
    void idsAreTakenAsTheyAre() {
        Sample sample = parse(OPTIONS, "{\"context\":[5,2],\"completion\":[7,2]}").get(0);
        assertThat(sample.ids()).containsExactly(5, 2, 7, 2);
        assertThat(sample.supervised()).containsExactly(false, false, true, true);
    }

    @Test
    void onlyTheAssistantIsSupervised() {
        Sample sample = parse(
                new JsonlOptions(64, false, LossOn.COMPLETION, 1000),
                "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"yz\"}]}")
                .get(0);
        assertThat(sample.supervisedCount()).isEqualTo(3);
        assertThat(CHARACTERS.decode(sample.ids())).isEqualTo("\u0002user: x\nassistant: yz\u0003\n");
    }

    @Test
    void aLongTextIsSplitAndALongCompletionRefusedOrCut() {
        Dataset split = parse(new JsonlOptions(4, false, LossOn.ALL, 1000), "{\"text\":\"abcdef\"}");
        assertThat(split.size()).isEqualTo(3);
        assertThat(split.get(0).ids()).containsExactly(2, 'a', 'b', 'c');
        assertThat(split.get(2).ids()).containsExactly(2, 3);
        String line = "{\"prompt\":\"abc\",\"completion\":\"def\"}";
        assertThatThrownBy(() -> parse(new JsonlOptions(4, false, LossOn.ALL, 1000), "", line))
                .hasMessageContaining("data.jsonl line 2: expected at most 4 tokens, found 8");
        assertThat(parse(new JsonlOptions(4, true, LossOn.ALL, 1000), line).get(0).ids()).hasSize(4);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', quoteCharacter = '`', value = {
            "{\"text\":                       | expected JSON",
            "{\"text\": \"a\\ud800\"}           | expected whole characters in text",
            "{\"text\": 3}                    | expected a text in text, found 3",
            "{\"prompt\": \"a\"}              | expected text, prompt and completion",
            "[1]                              | found no object",
            "{\"context\":[1],\"completion\":[1000]} | expected tokens in [0, 1000) in completion, found 1000",
            "{\"messages\": []}               | expected a list of messages"
    })
    void aBadLineIsNamed(String line, String message) {
        assertThatThrownBy(() -> parse(OPTIONS, "{\"text\":\"a\"}", line))
                .isInstanceOf(DataException.class)
                .hasMessageContaining("data.jsonl line 2: ")
                .hasMessageContaining(message);
    }

    @Test
    void aLongLineIsNotQuotedWhole() {
        String line = "{\"text\": [" + "1234567890, ".repeat(10_000) + "1]}";
        assertThatThrownBy(() -> parse(OPTIONS, line)).isInstanceOf(DataException.class)
                .hasMessageMatching("data.jsonl line 1: expected a text in text, found \\[1234567890,.{80,100}\\.\\.\\.");
    }

    @Test
    void tokensThatTheModelLacksAreNamed() {
        assertThatThrownBy(
                () -> parse(new JsonlOptions(16, false, LossOn.ALL, 100), "{\"text\":\"ab\"}", "{\"text\":\"az\"}"))
                .isInstanceOf(DataException.class)
                .hasMessageContaining("data.jsonl line 2: expected tokens in [0, 100), found 122");
    }

    @Test
    void aFileThatIsNotThereOrNoFileIsNamed() {
        Path missing = folder.resolve("missing.jsonl");
        assertThatThrownBy(() -> JsonlReader.read(missing, CHARACTERS, OPTIONS)).isInstanceOf(NoSuchFileException.class)
                .hasMessage(missing + ": expected a file, found none");
        assertThatThrownBy(() -> JsonlReader.read(folder, CHARACTERS, OPTIONS)).isInstanceOf(IOException.class)
                .hasMessage(folder + ": expected a file, found a folder");
    }

    @Test
    void oneSampleIsSaidInTheSingular() {
        assertThat(parse(OPTIONS, "{\"text\":\"a\"}")).hasToString("data.jsonl: 1 sample");
        assertThat(parse(OPTIONS, "{\"text\":\"a\"}", "{\"text\":\"b\"}")).hasToString("data.jsonl: 2 samples");
    }

    @Test
    void dataWithoutASampleOrASupervisedTokenAreNamed() {
        assertThatThrownBy(() -> parse(OPTIONS, "", "  ")).isInstanceOf(DataException.class)
                .hasMessage("data.jsonl: expected one sample or more, found none");
        String masked = "{\"context\":[1,2],\"completion\":[]}";
        assertThatThrownBy(() -> parse(OPTIONS, masked, masked)).isInstanceOf(DataException.class).hasMessage(
                "data.jsonl: expected supervised tokens, found none in 2 samples: every completion is empty or cut off");
        assertThatThrownBy(() -> parse(OPTIONS, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}"))
                .hasMessageContaining("expected supervised tokens, found none in 1 sample:");
        assertThatThrownBy(() -> parse(new JsonlOptions(3, true, LossOn.COMPLETION, 1000),
                "{\"prompt\":\"abc\",\"completion\":\"d\"}")).hasMessageContaining("expected supervised tokens");
        assertThat(parse(OPTIONS, masked, "{\"text\":\"a\"}").size()).isEqualTo(2);
    }

    @Test
    void linesOfAFileAreCountedAndEndedAsTheyCome() throws IOException {
        Dataset data = read(folder, "{\"text\":\"a\"}\r\n\n{\"text\":\"\u00fc\"}".getBytes(StandardCharsets.UTF_8));
        assertThat(data.size()).isEqualTo(2);
        assertThat(data.get(1).ids()).containsExactly(2, 0xfc, 3);
        assertThat(data.describe(1)).isEqualTo(folder.resolve("data.jsonl") + " line 3");
        assertThatThrownBy(
                () -> read(folder, "{\"text\":\"a\"}\n{\"text\":\"\u00fc\"}\n".getBytes(StandardCharsets.ISO_8859_1)))
                .isInstanceOf(DataException.class)
                .hasMessage(folder.resolve("data.jsonl") + " line 2: expected text in UTF-8, found other bytes");
        assertThatThrownBy(() -> read(folder, new byte[0])).isInstanceOf(DataException.class)
                .hasMessage(folder.resolve("data.jsonl") + ": expected one sample or more, found none");
    }
}
