package dev.penumbra.io;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import tools.jackson.core.JacksonException;
import tools.jackson.core.StreamReadFeature;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * PEFT's {@code adapter_config.json} as far as it says what is computed. A key that this class does not know may only have
 * a value that turns nothing on: PEFT's variants of LoRA are keys, and one that is passed over computes something else.
 */
final class PeftConfig {

    /** PEFT's own default of {@code r} and of {@code lora_alpha}. */
    private static final int DEFAULT = 8;

    /** Read here. */
    private static final Set<String> READ = Set.of("peft_type", "task_type", "target_modules", "r", "lora_alpha",
            "lora_dropout", "use_rslora", "base_model_name_or_path", "bias", "init_lora_weights");

    /** Of no effect on what an adapter computes, or of none without another key that is refused. */
    private static final Set<String> INERT = Set.of("auto_mapping", "inference_mode", "peft_version", "revision",
            "runtime_config", "megatron_core", "qalora_group_size", "layers_pattern");

    /** Ways to begin that leave the base model's weights as they are: once saved, they are plain LoRA. */
    private static final Set<String> PLAIN_INIT = Set.of("gaussian", "orthogonal");

    private static final JsonMapper JSON = JsonMapper.builder().enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION).build();

    private final Path file;
    private final JsonNode json;
    private final List<String> targetNames;
    private final Pattern targetPattern;

    /**
     * Reads a configuration of plain LoRA, rank-stabilised or not.
     *
     * @throws IOException naming the file and the key that is not as expected
     */
    PeftConfig(Path file) throws IOException {
        this.file = file;
        if (!Files.exists(file)) {
            throw new IOException(file + ": expected a PEFT adapter's configuration, found no file");
        }
        TextFiles.requireFile(file);
        try {
            json = JSON.readTree(Files.readAllBytes(file));
        } catch (JacksonException broken) {
            throw new IOException(file + ": expected JSON: " + TextFiles.problem(broken), broken);
        }
        if (!json.isObject()) {
            throw new IOException(file + ": expected a JSON object");
        }
        requireText("peft_type", Set.of("LORA"), false);
        requireText("task_type", Set.of("CAUSAL_LM"), true);
        requireText("bias", Set.of("none"), true);
        JsonNode init = json.path("init_lora_weights");
        if (!init.isBoolean() && !isOff(init) && !PLAIN_INIT.contains(init.stringValue(""))) {
            throw refuse("init_lora_weights", init,
                    "true, false or one of " + PLAIN_INIT + " (others change the base model)");
        }
        for (Map.Entry<String, JsonNode> entry : json.properties()) {
            if (!READ.contains(entry.getKey()) && !INERT.contains(entry.getKey()) && !isOff(entry.getValue())) {
                throw new IOException(file + ": expected plain LoRA, found " + entry.getKey() + " = " + entry.getValue()
                        + ", which is not computed here");
            }
        }
        JsonNode targets = json.path("target_modules");
        boolean names = targets.isArray() && !targets.isEmpty() && targets.valueStream().allMatch(JsonNode::isString);
        if (!names && !targets.isString()) {
            throw refuse("target_modules", targets, "names of modules or a regular expression");
        }
        targetNames = names ? targets.valueStream().map(JsonNode::stringValue).toList() : List.of();
        try {
            targetPattern = Pattern.compile(targets.stringValue(""));
        } catch (PatternSyntaxException broken) {
            throw refuse("target_modules", targets, "a regular expression");
        }
    }

    int r() throws IOException {
        JsonNode r = json.path("r");
        if (r.isMissingNode()) {
            return DEFAULT;
        }
        if (!r.isIntegralNumber() || !r.canConvertToInt() || r.intValue() < 1) {
            throw refuse("r", r, "a rank of 1 or more");
        }
        return r.intValue();
    }

    double loraAlpha() throws IOException {
        return number("lora_alpha", DEFAULT);
    }

    double loraDropout() throws IOException {
        return number("lora_dropout", 0);
    }

    boolean useRslora() throws IOException {
        JsonNode flag = json.path("use_rslora");
        if (!flag.isBoolean() && !isOff(flag)) {
            throw refuse("use_rslora", flag, "true or false");
        }
        return flag.booleanValue(false);
    }

    String baseModel() {
        return json.path("base_model_name_or_path").stringValue("");
    }

    /**
     * The last names of {@code modules}, each of which must be a target; and each target that is listed must have one.
     *
     * @param modules whole names: {@code model.decoder.layers.0.self_attn.q_proj}
     */
    Set<String> targetKinds(Iterable<String> modules) throws IOException {
        Set<String> kinds = new LinkedHashSet<>();
        Set<String> unmatched = new LinkedHashSet<>(targetNames);
        for (String module : modules) {
            boolean matched = targetNames.isEmpty() && targetPattern.matcher(module).matches();
            for (String target : targetNames) {
                if (module.equals(target) || module.endsWith("." + target)) {
                    matched = true;
                    unmatched.remove(target);
                }
            }
            if (!matched) {
                throw new IOException(file + ": expected target_modules to name every adapted module, found tensors of "
                        + module + " beside " + json.path("target_modules"));
            }
            kinds.add(module.substring(module.lastIndexOf('.') + 1));
        }
        if (!unmatched.isEmpty()) {
            throw new IOException(file + ": expected tensors for every target module, found none for " + unmatched);
        }
        return kinds;
    }

    private double number(String key, double otherwise) throws IOException {
        JsonNode value = json.path(key);
        if (value.isMissingNode()) {
            return otherwise;
        }
        if (!value.isNumber()) {
            throw refuse(key, value, "a number");
        }
        return value.doubleValue();
    }

    private void requireText(String key, Set<String> known, boolean orNone) throws IOException {
        JsonNode value = json.path(key);
        if (!known.contains(value.stringValue("")) && !(orNone && (value.isMissingNode() || value.isNull()))) {
            throw refuse(key, value, String.join(" or ", known));
        }
    }

    /** What a configuration has under a key that turns nothing on. */
    private static boolean isOff(JsonNode value) {
        return value.isMissingNode() || value.isNull() || value.isBoolean() && !value.booleanValue()
                || value.isContainer() && value.isEmpty() || value.isString() && value.stringValue().isEmpty();
    }

    private IOException refuse(String key, JsonNode found, String expected) {
        return new IOException(
                file + ": " + key + ": expected " + expected + ", found " + (found.isMissingNode() ? "nothing" : found));
    }
}
