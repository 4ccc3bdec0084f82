package dev.penumbra.data;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
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
    private final Optional<String> chatTemplate;

    private HfTokenizer(HuggingFaceTokenizer tokenizer, int bosId, int eosId, int padId, Optional<String> chatTemplate) {
        this.tokenizer = tokenizer;
        this.bosId = bosId;
        this.eosId = eosId;
        this.padId = padId;
        this.chatTemplate = chatTemplate;
    }

    /**
     * Reads the tokenizer of a model folder: {@code tokenizer.json}, else {@code vocab.json} with {@code merges.txt}. Start, end
     * and padding token are those of {@code config.json}, else OPT's.
     */
    public static HfTokenizer load(Path modelFolder) throws IOException {
        Path file = modelFolder.resolve("tokenizer.json");
        HuggingFaceTokenizer tokenizer;
        if (Files.exists(file)) {
            tokenizer = open(file, Files.newInputStream(file));
        } else if (Files.exists(modelFolder.resolve("vocab.json")) && Files.exists(modelFolder.resolve("merges.txt"))) {
            byte[] json = ByteLevelBpe.tokenizerJson(modelFolder).getBytes(StandardCharsets.UTF_8);
            tokenizer = open(modelFolder.resolve("vocab.json"), new ByteArrayInputStream(json));
        } else {
            throw new IOException(modelFolder + ": expected tokenizer.json, or vocab.json and merges.txt, found neither");
        }
        JsonNode config = JsonFiles.readIfPresent(modelFolder.resolve("config.json"));
        return new HfTokenizer(
                tokenizer,
                config.path("bos_token_id").asInt(2),
                config.path("eos_token_id").asInt(2),
                config.path("pad_token_id").asInt(1),
                template(modelFolder));
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

    private static Optional<String> template(Path modelFolder) throws IOException {
        Path file = modelFolder.resolve("chat_template.jinja");
        if (Files.exists(file)) {
            return Optional.of(Files.readString(file));
        }
        JsonNode template = JsonFiles.readIfPresent(modelFolder.resolve("tokenizer_config.json")).path("chat_template");
        return template.isString()
                ? Optional.of(template.stringValue())
                : template.isArray() ? Optional.of(template.toString()) : Optional.empty();
    }

    @Override
    public Optional<String> chatTemplate() {
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
}
