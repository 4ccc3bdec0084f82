package dev.penumbra.data;

import dev.penumbra.data.ChatTemplate.Message;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.internal.Counted;
import dev.penumbra.io.TextFiles;
import java.io.BufferedInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import tools.jackson.core.JacksonException;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * Reads JSON Lines, one sample a line: {@code {"text"}}, {@code {"prompt", "completion"}},
 * {@code {"messages": [{"role", "content"}]}} or {@code {"context": [ids], "completion": [ids]}}.
 *
 * <p>Prompt and completion are tokenised apart, the start token stands once before them and the end token once after; lists
 * of ids are taken as they are. Messages are written as the tokenizer's chat template says, each answer tokenised apart from
 * what precedes it; without a template they become {@code role: content} lines, and each answer ends with the end token. What
 * the assistant says is the completion.
 */
public final class JsonlReader {

    private static final JsonMapper JSON = JsonMapper.builder()
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .build();

    private static final int BUFFER_BYTES = 1 << 16;
    private static final int LONGEST_QUOTE = 100;

    private final String name;
    private final Tokenizer tokenizer;
    private final JsonlOptions options;
    private final List<Sample> samples = new ArrayList<>();
    private final List<Integer> lines = new ArrayList<>();

    private JsonlReader(String name, Tokenizer tokenizer, JsonlOptions options) {
        this.name = name;
        this.tokenizer = tokenizer;
        this.options = options;
    }

    /**
     * Reads a whole file.
     *
     * @throws IOException naming the file when there is none or it cannot be read
     * @throws DataException when a line is not a sample: file, line, what was expected and what was found
     */
    public static Dataset read(Path file, Tokenizer tokenizer, JsonlOptions options) throws IOException {
        JsonlReader reader = new JsonlReader(file.toString(), tokenizer, options);
        TextFiles.requireFile(file);
        try (InputStream in = new BufferedInputStream(Files.newInputStream(file), BUFFER_BYTES)) {
            ByteArrayOutputStream bytes = new ByteArrayOutputStream();
            int line = 1;
            for (int next = in.read(); next >= 0; next = in.read()) {
                if (next == '\n') {
                    reader.readLine(bytes.toByteArray(), line++);
                    bytes.reset();
                } else {
                    bytes.write(next);
                }
            }
            reader.readLine(bytes.toByteArray(), line);
        }
        return reader.dataset();
    }

    /** Reads lines that are in memory already; {@code name} stands in messages where a file's name would. */
    public static Dataset parse(String name, List<String> lines, Tokenizer tokenizer, JsonlOptions options) {
        JsonlReader reader = new JsonlReader(name, tokenizer, options);
        for (int i = 0; i < lines.size(); i++) {
            reader.readLine(lines.get(i), i + 1);
        }
        return reader.dataset();
    }

    private Dataset dataset() {
        if (samples.isEmpty()) {
            throw new DataException(name + ": expected one sample or more, found none");
        }
        if (samples.stream().noneMatch(sample -> sample.supervisedCount() > 0)) {
            throw new DataException(name + ": expected supervised tokens, found none in "
                    + Counted.of(samples.size(), "sample") + ": every completion is empty or cut off");
        }
        return new Dataset() {
            @Override
            public int size() {
                return samples.size();
            }

            @Override
            public Sample get(int index) {
                return samples.get(index);
            }

            @Override
            public String describe(int index) {
                return name + " line " + lines.get(index);
            }

            @Override
            public String toString() {
                return name + ": " + Counted.of(samples.size(), "sample");
            }
        };
    }

    private void readLine(byte[] text, int line) {
        try {
            readLine(StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(text)).toString(), line);
        } catch (CharacterCodingException notText) {
            throw failure(line, "expected text in UTF-8, found other bytes");
        }
    }

    private void readLine(String text, int line) {
        if (text.isBlank()) {
            return;
        }
        JsonNode json;
        try {
            json = JSON.readTree(text);
        } catch (JacksonException broken) {
            throw failure(line, "expected JSON: " + TextFiles.problem(broken));
        }
        Builder sample = new Builder();
        if (json.has("text")) {
            addText(string(json, "text", line), line);
            return;
        } else if (json.has("messages")) {
            addMessages(sample, json.get("messages"), line);
        } else if (json.has("prompt") && json.has("completion")) {
            sample.add(new int[]{tokenizer.bosId()}, false);
            sample.add(tokenizer.encode(string(json, "prompt", line)), false);
            sample.add(tokenizer.encode(string(json, "completion", line)), true);
            sample.add(new int[]{tokenizer.eosId()}, true);
        } else if (json.has("context") && json.has("completion")) {
            sample.add(ids(json, "context", line), false);
            sample.add(ids(json, "completion", line), true);
        } else {
            throw failure(line,
                    "expected text, prompt and completion, messages, or context and completion, found " + names(json));
        }
        keep(sample, line);
    }

    private static String names(JsonNode json) {
        return json.isObject() ? shown(json.propertyNames()) : "no object";
    }

    /** A text is as many samples as it takes, each with a start token; the end token closes the last. */
    private void addText(String text, int line) {
        int[] content = tokenizer.encode(text);
        int[] ended = Arrays.copyOf(content, content.length + 1);
        ended[content.length] = tokenizer.eosId();
        int piece = options.seqLen() - 1;
        for (int from = 0; from < ended.length; from += piece) {
            Builder sample = new Builder();
            sample.add(new int[]{tokenizer.bosId()}, false);
            sample.add(Arrays.copyOfRange(ended, from, Math.min(ended.length, from + piece)), true);
            keep(sample, line);
        }
    }

    private void addMessages(Builder sample, JsonNode messages, int line) {
        if (!messages.isArray() || messages.isEmpty()) {
            throw failure(line, "expected a list of messages, found " + shown(messages));
        }
        List<Message> conversation = new ArrayList<>();
        for (JsonNode message : messages) {
            conversation.add(new Message(string(message, "role", line), string(message, "content", line)));
        }
        if (tokenizer.chatTemplate().isPresent()) {
            addAsTemplate(sample, tokenizer.chatTemplate().get(), conversation, line);
        } else {
            addPlainly(sample, conversation);
        }
    }

    /** The template writes start and end tokens itself, where the model has them. */
    private void addAsTemplate(Builder sample, ChatTemplate template, List<Message> conversation, int line) {
        try {
            for (ChatTemplate.Piece piece : template.divide(conversation)) {
                sample.add(tokenizer.encode(piece.text()), piece.answer());
            }
        } catch (DataException refused) {
            throw failure(line, refused.getMessage());
        }
    }

    private void addPlainly(Builder sample, List<Message> conversation) {
        sample.add(new int[]{tokenizer.bosId()}, false);
        for (Message message : conversation) {
            boolean answer = message.role().equals("assistant");
            sample.add(tokenizer.encode(message.role() + ": "), false);
            sample.add(tokenizer.encode(message.content()), answer);
            if (answer) {
                sample.add(new int[]{tokenizer.eosId()}, true);
            }
            sample.add(tokenizer.encode("\n"), false);
        }
    }

    private void keep(Builder built, int line) {
        int[] ids = built.ids();
        if (ids.length > options.seqLen()) {
            if (!options.truncate()) {
                throw failure(line, "expected at most " + options.seqLen() + " tokens, found " + ids.length
                        + ": raise --seq-len or pass --truncate");
            }
            ids = Arrays.copyOf(ids, options.seqLen());
        }
        if (ids.length == 0) {
            throw failure(line, "expected tokens, found none");
        }
        for (int id : ids) {
            if (id < 0 || id >= options.vocabSize()) {
                throw failure(line, "expected tokens in [0, " + options.vocabSize() + "), found " + id
                        + ": is the tokenizer another model's?");
            }
        }
        boolean[] supervised = new boolean[ids.length];
        for (int i = 1; i < ids.length; i++) {
            supervised[i] = options.lossOn() == LossOn.ALL || built.supervised(i);
        }
        samples.add(new Sample(ids, supervised));
        lines.add(line);
    }

    private String string(JsonNode json, String key, int line) {
        JsonNode value = json.path(key);
        if (!value.isString()) {
            throw failure(line, "expected a text in " + key + ", found " + shown(value));
        }
        if (!StandardCharsets.UTF_8.newEncoder().canEncode(value.stringValue())) {
            throw failure(line, "expected whole characters in " + key + ", found half of a surrogate pair");
        }
        return value.stringValue();
    }

    private int[] ids(JsonNode json, String key, int line) {
        JsonNode values = json.path(key);
        if (!values.isArray()) {
            throw failure(line, "expected a list of tokens in " + key + ", found " + shown(values));
        }
        int[] ids = new int[values.size()];
        for (int i = 0; i < ids.length; i++) {
            JsonNode value = values.get(i);
            if (!value.isIntegralNumber() || !value.canConvertToInt() || value.intValue() < 0
                    || value.intValue() >= options.vocabSize()) {
                throw failure(line,
                        "expected tokens in [0, " + options.vocabSize() + ") in " + key + ", found " + shown(value) + " at "
                                + i);
            }
            ids[i] = value.intValue();
        }
        return ids;
    }

    /** What a message quotes: a line may be as long as a book. */
    private static String shown(Object value) {
        String text = value instanceof JsonNode json && json.isMissingNode() ? "nothing" : value.toString();
        return text.length() <= LONGEST_QUOTE ? text : text.substring(0, LONGEST_QUOTE) + "...";
    }

    private DataException failure(int line, String message) {
        return new DataException(name + " line " + line + ": " + message);
    }

    /** Tokens as they are put together, with their marks. */
    private static final class Builder {
        private final List<int[]> pieces = new ArrayList<>();
        private final List<Boolean> marks = new ArrayList<>();

        void add(int[] ids, boolean supervised) {
            pieces.add(ids);
            for (int i = 0; i < ids.length; i++) {
                marks.add(supervised);
            }
        }

        int[] ids() {
            return pieces.stream().flatMapToInt(IntStream::of).toArray();
        }

        boolean supervised(int index) {
            return marks.get(index);
        }
    }
}
