package dev.penumbra.data;

import com.hubspot.jinjava.Jinjava;
import com.hubspot.jinjava.JinjavaConfig;
import com.hubspot.jinjava.LegacyOverrides;
import com.hubspot.jinjava.interpret.Context;
import com.hubspot.jinjava.interpret.RenderResult;
import com.hubspot.jinjava.interpret.TemplateError;
import com.hubspot.jinjava.lib.fn.ELFunctionDefinition;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * How a model's makers write conversations: the Jinja template of its tokenizer, evaluated as transformers does, blocks
 * trimmed and their lines stripped. A construct that the evaluator does not know is an error, never left out.
 */
public final class ChatTemplate {

    /** One turn of a conversation. */
    public record Message(String role, String content) {
    }

    /** A part of the conversation as text; an answer is what the assistant has to write. */
    public record Piece(String text, boolean answer) {
    }

    private static final String UNKNOWN = "expected a chat template that can be evaluated, found: ";

    private final String source;
    private final String bosToken;
    private final String eosToken;

    public ChatTemplate(String source, String bosToken, String eosToken) {
        this.source = blocksAsTransformersReadsThem(source);
        this.bosToken = bosToken;
        this.eosToken = eosToken;
    }

    /**
     * The evaluator's own options for these strip too much: also where other text precedes a block on its line. Marks of what
     * the assistant generates mean nothing to the text itself.
     */
    private static String blocksAsTransformersReadsThem(String template) {
        return template.replaceAll("(?m)^[ \\t]+(?=\\{[%#](?!\\+))", "").replaceAll("([%#]\\})\\R", "$1")
                .replaceAll("\\{%([-+]?)\\s*generation\\s*(-?)%\\}", "{%$1 if true $2%}")
                .replaceAll("\\{%([-+]?)\\s*endgeneration\\s*(-?)%\\}", "{%$1 endif $2%}");
    }

    /**
     * The conversation in pieces, alternately what is given and what the assistant answers.
     *
     * @throws DataException when the template refuses the conversation, cannot be evaluated, or writes an earlier turn
     *     differently once a later one is there
     */
    public List<Piece> divide(List<Message> conversation) {
        List<Piece> pieces = new ArrayList<>();
        String written = "";
        for (int i = 0; i < conversation.size(); i++) {
            if (conversation.get(i).role().equals("assistant")) {
                String given = render(conversation.subList(0, i), true);
                String answered = render(conversation.subList(0, i + 1), false);
                pieces.add(new Piece(rest(given, written), false));
                pieces.add(new Piece(rest(answered, given), true));
                written = answered;
            }
        }
        pieces.add(new Piece(rest(render(conversation, false), written), false));
        pieces.removeIf(piece -> piece.text().isEmpty());
        return pieces;
    }

    private static String rest(String text, String beginning) {
        if (!text.startsWith(beginning)) {
            throw new DataException("expected a chat template that goes on from what it wrote before, found \"" + beginning
                    + "\" become \"" + text + "\"");
        }
        return text.substring(beginning.length());
    }

    private String render(List<Message> messages, boolean addGenerationPrompt) {
        Map<String, Object> names = new HashMap<>();
        names.put("messages", messages.stream().map(m -> Map.of("role", m.role(), "content", m.content())).toList());
        names.put("bos_token", bosToken);
        names.put("eos_token", eosToken);
        names.put("add_generation_prompt", addGenerationPrompt);
        RenderResult result;
        try {
            Evaluator.requireKnownFilters(source);
            result = Evaluator.JINJAVA.renderForResult(source, names);
        } catch (NoClassDefFoundError missing) {
            throw new DataException(
                    "expected com.hubspot.jinjava:jinjava on the class path, which evaluates chat templates, found none",
                    missing);
        }
        if (result.hasErrors()) {
            throw refused(result.getErrors().getFirst());
        }
        return result.getOutput();
    }

    private static DataException refused(TemplateError error) {
        for (Throwable cause = error.getException(); cause != null; cause = cause.getCause()) {
            if (cause instanceof Raised raised) {
                return new DataException(
                        "expected a conversation that the chat template accepts, found: " + raised.getMessage());
            }
        }
        return new DataException(UNKNOWN + error.getMessage());
    }

    /** A template refused a conversation. */
    private static final class Raised extends RuntimeException {
        private static final long serialVersionUID = 1;

        Raised(String message) {
            super(message);
        }
    }

    /** Loaded with the first template: the evaluator is an optional dependency. */
    private static final class Evaluator {

        static final Jinjava JINJAVA = create();
        private static final Pattern BLOCK = Pattern.compile("\\{[{%].*?[%}]\\}", Pattern.DOTALL);
        private static final Pattern LITERAL = Pattern.compile("'(?:[^'\\\\]|\\\\.)*'|\"(?:[^\"\\\\]|\\\\.)*\"");
        private static final Pattern FILTER = Pattern.compile("\\|\\s*(\\w+)");

        private Evaluator() {
        }

        private static Jinjava create() {
            LegacyOverrides asJinja = LegacyOverrides.newBuilder().withEvaluateMapKeys(true).withIterateOverMapKeys(true)
                    .withUseSnakeCasePropertyNaming(true)
                    .withUseNaturalOperatorPrecedence(true).withParseWhitespaceControlStrictly(true)
                    .withAllowAdjacentTextNodes(true).withUseTrimmingForNotesAndExpressions(true)
                    .withKeepNullableLoopValues(true).build();
            // What a message says is never a template itself.
            Jinjava jinjava = new Jinjava(JinjavaConfig.newBuilder().withLegacyOverrides(asJinja)
                    .withNestedInterpretationEnabled(false).build());
            Context context = jinjava.getGlobalContext();
            context.registerFunction(
                    new ELFunctionDefinition("", "raise_exception", Evaluator.class, "raiseException", String.class));
            return jinjava;
        }

        /** The evaluator passes values on unchanged through filters that it does not know. */
        static void requireKnownFilters(String template) {
            Matcher block = BLOCK.matcher(LITERAL.matcher(template).replaceAll("''"));
            while (block.find()) {
                Matcher filter = FILTER.matcher(block.group());
                while (filter.find()) {
                    if (JINJAVA.getGlobalContext().getFilter(filter.group(1)) == null) {
                        throw new DataException(UNKNOWN + "no filter of the name " + filter.group(1) + " is known here");
                    }
                }
            }
        }

        /** What templates call to refuse a conversation. */
        @SuppressWarnings("unused")
        public static String raiseException(String message) {
            throw new Raised(message);
        }
    }
}
