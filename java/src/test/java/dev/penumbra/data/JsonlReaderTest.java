package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.data.JsonlOptions.LossOn;
import java.util.List;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class JsonlReaderTest {

    private static final JsonlOptions OPTIONS = new JsonlOptions(16, false, LossOn.COMPLETION, 1000);

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

    @Property(tries = 500)
    void nothingButADataExceptionEscapes(@ForAll String noise) {
        for (String line : new String[]{noise, "{\"text\":" + noise, "{\"prompt\":\"a\",\"completion\":" + noise + "}"}) {
            try {
                parse(OPTIONS, line.lines().toArray(String[]::new));
            } catch (DataException refused) {
                assertThat(refused).hasMessageContaining("data.jsonl");
            }
        }
    }
}
