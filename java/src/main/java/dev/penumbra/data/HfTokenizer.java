package dev.penumbra.data;

import ai.djl.huggingface.tokenizers.HuggingFaceTokenizer;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** The tokenizer of a Hugging Face model folder: {@code tokenizer.json}, read by the library its makers wrote. */
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

    private HfTokenizer(HuggingFaceTokenizer tokenizer, int bosId, int eosId, int padId) {
        this.tokenizer = tokenizer;
        this.bosId = bosId;
        this.eosId = eosId;
        this.padId = padId;
    }

    /** Reads the tokenizer of a model folder; start, end and padding token are those of its {@code config.json}. */
    public static HfTokenizer load(Path modelFolder) throws IOException {
        Path file = modelFolder.resolve("tokenizer.json");
        if (!Files.exists(file)) {
            throw new IOException(file + ": expected a tokenizer, found no file");
        }
        JsonNode config = new JsonMapper().readTree(Files.readString(modelFolder.resolve("config.json")));
        HuggingFaceTokenizer tokenizer = HuggingFaceTokenizer.newInstance(
                file, Map.of("addSpecialTokens", "false", "truncation", "false", "padding", "false"));
        return new HfTokenizer(
                tokenizer,
                config.path("bos_token_id").asInt(2),
                config.path("eos_token_id").asInt(2),
                config.path("pad_token_id").asInt(1));
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
