package dev.penumbra.data;

import dev.penumbra.io.TextFiles;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/**
 * Puts a {@code tokenizer.json} together, in memory, from {@code vocab.json} and {@code merges.txt}. The library's own
 * constructor from these two files leaves out the byte-level step and so loses spaces.
 */
final class ByteLevelBpe {

    private static final JsonMapper JSON = new JsonMapper();
    private static final String[] ROLES = {"bos_token", "eos_token", "pad_token", "unk_token"};

    private ByteLevelBpe() {
    }

    /** The text of a {@code tokenizer.json}. */
    static String tokenizerJson(Path folder) throws IOException {
        Path vocabFile = folder.resolve("vocab.json");
        JsonNode vocab = JsonFiles.read(vocabFile);
        ObjectNode root = JSON.createObjectNode();
        root.put("version", "1.0").putNull("truncation").putNull("padding");
        ArrayNode added = root.putArray("added_tokens");
        for (Map.Entry<Integer, String> special : specials(folder, vocab, vocabFile).entrySet()) {
            added.addObject()
                    .put("id", special.getKey())
                    .put("content", special.getValue())
                    .put("single_word", false)
                    .put("lstrip", false)
                    .put("rstrip", false)
                    .put("normalized", true)
                    .put("special", true);
        }
        root.putNull("normalizer");
        byteLevel(root.putObject("pre_tokenizer"), false);
        root.putNull("post_processor");
        byteLevel(root.putObject("decoder"), true);
        ObjectNode model = root.putObject("model");
        model.put("type", "BPE").putNull("dropout").putNull("unk_token");
        model.put("continuing_subword_prefix", "").put("end_of_word_suffix", "").put("fuse_unk", false);
        model.set("vocab", vocab);
        merges(folder.resolve("merges.txt"), model.putArray("merges"));
        return JSON.writeValueAsString(root);
    }

    private static void byteLevel(ObjectNode step, boolean prefixSpace) {
        step.put("type", "ByteLevel").put("add_prefix_space", prefixSpace).put("trim_offsets", true).put("use_regex", true);
    }

    private static void merges(Path file, ArrayNode merges) throws IOException {
        String[] lines = TextFiles.read(file).split("\r?\n");
        for (int i = 0; i < lines.length; i++) {
            if (lines[i].isEmpty() || i == 0 && lines[i].startsWith("#version")) {
                continue;
            }
            if (lines[i].split(" ").length != 2) {
                throw new DataException(
                        file + " line " + (i + 1) + ": expected two tokens and a space between, found " + lines[i]);
            }
            merges.add(lines[i]);
        }
    }

    /** The special tokens that the folder names, else OPT's, by id. */
    private static Map<Integer, String> specials(Path folder, JsonNode vocab, Path vocabFile) throws IOException {
        Map<Integer, String> specials = new TreeMap<>();
        for (String name : new String[]{"special_tokens_map.json", "tokenizer_config.json"}) {
            Path file = folder.resolve(name);
            if (!Files.exists(file)) {
                continue;
            }
            JsonNode settings = JsonFiles.read(file);
            for (String role : ROLES) {
                JsonNode token = settings.path(role);
                String content = token.isObject()
                        ? token.path("content").asString("")
                        : token.isString() ? token.stringValue() : "";
                if (!content.isEmpty()) {
                    specials.put(id(vocab, content, vocabFile), content);
                }
            }
        }
        if (specials.isEmpty()) {
            specials.put(id(vocab, "<pad>", vocabFile), "<pad>");
            specials.put(id(vocab, "</s>", vocabFile), "</s>");
        }
        return specials;
    }

    private static int id(JsonNode vocab, String token, Path vocabFile) {
        JsonNode id = vocab.path(token);
        if (!id.isIntegralNumber()) {
            throw new DataException(vocabFile + ": expected an id for the special token " + token + ", found none");
        }
        return id.intValue();
    }
}
