package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.data.ChatTemplate.Message;
import dev.penumbra.data.ChatTemplate.Piece;
import java.util.ArrayList;
import java.util.List;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Templates in the manner of well-known models; what is expected was compared with Jinja's own output once. */
class ChatTemplateTest {

    private static final String CHATML = """
            {%- for message in messages %}
                {{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>\\n' }}
            {%- endfor %}
            {%- if add_generation_prompt %}
                {{- '<|im_start|>assistant\\n' }}
            {%- endif %}
            """;

    /** Blocks on lines of their own, whose line ends and indents must vanish. */
    private static final String ZEPHYR = """
            {% for message in messages %}
                {% if message['role'] != 'assistant' %}
            {{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}
                {% else %}
            {{ '<|assistant|>\\n' + message['content'] + eos_token }}
                {% endif %}
                {% if loop.last and add_generation_prompt %}
            {{ '<|assistant|>' }}
                {% endif %}
            {% endfor %}""";

    /** Roles are checked, a system turn goes into the first one of the user, and nothing marks where an answer starts. */
    private static final String LLAMA = """
            {%- set ns = namespace(system='') -%}
            {%- if messages[0].role == 'system' -%}
                {%- set ns.system = '<<SYS>>\\n' ~ messages[0].content | trim ~ '\\n<</SYS>>\\n\\n' -%}
                {%- set turns = messages[1:] -%}
            {%- else -%}
                {%- set turns = messages -%}
            {%- endif -%}
            {%- for message in turns -%}
                {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
                    {{- raise_exception('roles must alternate') -}}
                {%- endif -%}
                {%- if message.role == 'user' -%}
                    {{- bos_token + '[INST] ' + (ns.system if loop.first else '') + message.content.strip() + ' [/INST]' -}}
                {%- else -%}
                    {%- generation -%}{{- ' ' + message.content.strip() + ' ' + eos_token -}}{%- endgeneration -%}
                {%- endif -%}
            {%- endfor -%}
            """;

    private static final List<Message> TALK = List.of(new Message("system", "Be brief."),
            new Message("user", " Hello & <hi> "),
            new Message("assistant", "Hi."), new Message("user", "Bye {{ 7 * 7 }} {% if %}"),
            new Message("assistant", "So long."));

    private static List<Piece> divide(String template, List<Message> conversation) {
        return new ChatTemplate(template, "<s>", "</s>").divide(conversation);
    }

    private static String text(List<Piece> pieces) {
        StringBuilder text = new StringBuilder();
        pieces.forEach(piece -> text.append(piece.text()));
        return text.toString();
    }

    @Test
    void chatMlGivesThePromptOfAnAnswerAndSupervisesTheRest() {
        assertThat(divide(CHATML, TALK)).containsExactly(
                new Piece(
                        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hello & <hi> <|im_end|>\n<|im_start|>assistant\n",
                        false),
                new Piece("Hi.<|im_end|>\n", true),
                new Piece("<|im_start|>user\nBye {{ 7 * 7 }} {% if %}<|im_end|>\n<|im_start|>assistant\n", false),
                new Piece("So long.<|im_end|>\n", true));
    }

    @Test
    void blocksOnLinesOfTheirOwnLeaveNoTrace() {
        assertThat(divide(ZEPHYR, TALK.subList(0, 3))).containsExactly(
                new Piece("<|system|>\nBe brief.</s>\n<|user|>\n Hello & <hi> </s>\n<|assistant|>\n", false),
                new Piece("Hi.</s>\n", true));
    }

    @Test
    void aTemplateWithoutAPromptForAnswersSupervisesAllItAdds() {
        assertThat(divide(LLAMA, TALK)).containsExactly(
                new Piece("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello & <hi> [/INST]", false),
                new Piece(" Hi. </s>", true),
                new Piece("<s>[INST] Bye {{ 7 * 7 }} {% if %} [/INST]", false),
                new Piece(" So long. </s>", true));
    }

    @Test
    void aConversationThatTheTemplateRefusesSaysWhy() {
        List<Message> twice = List.of(new Message("user", "a"), new Message("user", "b"));
        assertThatThrownBy(() -> divide(LLAMA, twice)).isInstanceOf(DataException.class)
                .hasMessageContaining("roles must alternate");
    }

    @ParameterizedTest
    @ValueSource(strings = {"{% nope %}", "{{ messages | nope }}", "{{ nope() }}", "{{ messages[0].content.nope() }}",
            "{% for m in messages %}"})
    void whatCannotBeEvaluatedIsRefused(String template) {
        assertThatThrownBy(() -> divide(template, TALK)).isInstanceOf(DataException.class)
                .hasMessageStartingWith("expected a chat template that can be evaluated, found: ");
    }

    @Test
    void aTemplateThatRewritesEarlierTurnsIsRefused() {
        assertThatThrownBy(() -> divide("{{ messages | length }}{{ messages[-1].content }}", TALK))
                .isInstanceOf(DataException.class).hasMessageContaining("goes on from what it wrote before");
    }

    /** Whatever people write, braces and quotes and line ends included, comes out as it went in. */
    @Property(tries = 200)
    void contentIsNeverChanged(@ForAll List<String> contents) {
        List<Message> conversation = new ArrayList<>();
        StringBuilder expected = new StringBuilder();
        for (int i = 0; i < contents.size(); i++) {
            String role = i % 2 == 0 ? "user" : "assistant";
            conversation.add(new Message(role, contents.get(i)));
            expected.append("<|im_start|>").append(role).append('\n').append(contents.get(i)).append("<|im_end|>\n");
        }
        assertThat(text(divide(CHATML, conversation))).isEqualTo(expected.toString());
    }

    @Test
    void messagesOfAFileGoThroughTheTemplate() {
        Tokenizer characters = new Tokenizer() {
            @Override
            public java.util.Optional<ChatTemplate> chatTemplate() {
                return java.util.Optional.of(new ChatTemplate(ZEPHYR, "<s>", "</s>"));
            }

            @Override
            public int[] encode(String text) {
                return JsonlReaderTest.CHARACTERS.encode(text);
            }

            @Override
            public String decode(int... ids) {
                return JsonlReaderTest.CHARACTERS.decode(ids);
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
        Sample sample = JsonlReader.parse("chat.jsonl",
                List.of("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}"),
                characters,
                new JsonlOptions(64, false, JsonlOptions.LossOn.COMPLETION, 1 << 16)).get(0);
        String whole = characters.decode(sample.ids());
        assertThat(whole).isEqualTo("<|user|>\na</s>\n<|assistant|>\nb</s>\n");
        StringBuilder supervised = new StringBuilder();
        for (int i = 0; i < sample.length(); i++) {
            supervised.append(sample.supervised()[i] ? (char) sample.ids()[i] : '.');
        }
        assertThat(supervised.toString()).isEqualTo(".".repeat(whole.length() - 6) + "b</s>\n");
    }
}
