package dev.penumbra.data;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.TextFiles;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Optional;
import tools.jackson.databind.JsonNode;

/** The tokenizer of a Hugging Face model folder, read by the library its makers wrote. */
public final class HfTokenizer implements Tokenizer {

    static {
        // On a machine with a GPU the library would otherwise look for another native build to download.
        System.setProperty("ai.djl.offline", "true");
        System.setProperty("OPT_OUT_TRACKING", "true");
    }

    private final HuggingFaceTokenizer tokenizer;
    private final int bosId;
    private final int eosId;
    private final int padId;
    private final Optional<ChatTemplate> chatTemplate;

    private HfTokenizer(HuggingFaceTokenizer tokenizer, int bosId, int eosId, int padId,
            Optional<ChatTemplate> chatTemplate) {
        this.tokenizer = tokenizer;
        this.bosId = bosId;
        this.eosId = eosId;
        this.padId = padId;
        this.chatTemplate = chatTemplate;
    }

    /**
     * Reads the tokenizer of a model folder: {@code tokenizer.json}, else {@code vocab.json} with {@code merges.txt}. Start, end
     * and padding token are those of {@code config.json}, else OPT's.
     *
     * @throws IOException naming the file that is missing or broken
     */
    public static HfTokenizer load(Path modelFolder) throws IOException {
        ModelFolder.requireFolder(modelFolder);
        Path file = modelFolder.resolve("tokenizer.json");
        HuggingFaceTokenizer tokenizer;
        if (Files.exists(file)) {
            TextFiles.requireFile(file);
            tokenizer = open(file, Files.newInputStream(file));
        } else if (Files.exists(modelFolder.resolve("vocab.json")) && Files.exists(modelFolder.resolve("merges.txt"))) {
            byte[] json = ByteLevelBpe.tokenizerJson(modelFolder).getBytes(StandardCharsets.UTF_8);
            tokenizer = open(modelFolder.resolve("vocab.json"), new ByteArrayInputStream(json));
        } else {
            throw new IOException(modelFolder + ": expected tokenizer.json, or vocab.json and merges.txt, found neither");
        }
        try {
            JsonNode config = JsonFiles.readIfPresent(modelFolder.resolve("config.json"));
            int bosId = config.path("bos_token_id").asInt(2);
            int eosId = config.path("eos_token_id").asInt(2);
            return new HfTokenizer(tokenizer, bosId, eosId, config.path("pad_token_id").asInt(1),
                    template(modelFolder, tokenizer, bosId, eosId));
        } catch (IOException | RuntimeException failure) {
            tokenizer.close();
            throw failure;
        }
    }

    /** The library's own failures name no file. */
    private static HuggingFaceTokenizer open(Path source, InputStream json) throws IOException {
        Map<String, String> plain = Map.of("addSpecialTokens", "false", "truncation", "false", "padding", "false");
        try (json) {
            return HuggingFaceTokenizer.newInstance(json, plain);
        } catch (RuntimeException broken) {
            throw new IOException(source + ": expected a tokenizer: " + broken.getMessage(), broken);
        }
    }

    private static Optional<ChatTemplate> template(Path modelFolder, HuggingFaceTokenizer tokenizer, int bosId, int eosId)
            throws IOException {
        JsonNode settings = JsonFiles.readIfPresent(modelFolder.resolve("tokenizer_config.json"));
        Path file = modelFolder.resolve("chat_template.jinja");
        String source = Files.exists(file) ? TextFiles.read(file) : source(settings.path("chat_template"));
        if (source.isEmpty()) {
            return Optional.empty();
        }
        return Optional.of(new ChatTemplate(source, text(settings.path("bos_token"), tokenizer, bosId),
                text(settings.path("eos_token"), tokenizer, eosId)));
    }

    /** A template, or several by name of which the default one counts; empty without one. */
    private static String source(JsonNode template) {
        if (template.isArray()) {
            for (JsonNode named : template) {
                if (named.path("name").asString("").equals("default")) {
                    return named.path("template").asString("");
                }
            }
        }
        return template.isString() ? template.stringValue() : "";
    }

    private static String text(JsonNode token, HuggingFaceTokenizer tokenizer, int id) {
        String named = token.isObject() ? token.path("content").asString("") : token.isString() ? token.stringValue() : "";
        return named.isEmpty() ? tokenizer.decode(new long[]{id}, false) : named;
    }

    @Override
    public Optional<ChatTemplate> chatTemplate() {
        return chatTemplate;
    }

    @Override
    public int[] encode(String text) {
        long[] ids = tokenizer.encode(text, false, false).getIds();
        int[] result = new int[ids.length];
        for (int i = 0; i < ids.length; i++) {
            result[i] = Math.toIntExact(ids[i]);
        }
        return result;
    }

    @Override
    public String decode(int... ids) {
        long[] wide = new long[ids.length];
        for (int i = 0; i < ids.length; i++) {
            wide[i] = ids[i];
        }
        return tokenizer.decode(wide, true);
    }

    @Override
    public int bosId() {
        return bosId;
    }

    @Override
    public int eosId() {
        return eosId;
    }

    @Override
    public int padId() {
        return padId;
    }

    @Override
    public void close() {
        tokenizer.close();
    }

    @Override
    public String toString() {
        return "tokenizer, start " + bosId + ", end " + eosId + ", padding " + padId;
    }
}
