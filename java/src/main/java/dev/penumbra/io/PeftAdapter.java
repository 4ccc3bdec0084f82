package dev.penumbra.io;

import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/**
 * A LoRA adapter as Hugging Face PEFT keeps it: {@code adapter_config.json} and {@code adapter_model.safetensors}.
 * Its tensors are mapped; closing it ends them.
 */
public final class PeftAdapter implements AutoCloseable {

    private static final String CONFIG = AdapterFiles.CONFIG;
    private static final String WEIGHTS = AdapterFiles.WEIGHTS;
    private static final String KEY_PREFIX = "base_model.model.";
    private static final JsonMapper JSON = new JsonMapper();

    private final LoraConfig config;
    private final String baseModel;
    private final SafetensorsFile file;
    private final Map<String, Tensor> tensors = new TreeMap<>();

    private PeftAdapter(LoraConfig config, String baseModel, SafetensorsFile file) {
        this.config = config;
        this.baseModel = baseModel;
        this.file = file;
        file.entries().keySet().forEach(name -> tensors.put(name, file.tensor(name)));
    }

    public LoraConfig config() {
        return config;
    }

    /** {@code base_model_name_or_path}, or an empty string. */
    public String baseModel() {
        return baseModel;
    }

    /** The tensors by PEFT's keys: {@code base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight} [r, in], ... */
    public Map<String, Tensor> tensors() {
        return Map.copyOf(tensors);
    }

    /**
     * Reads an adapter of plain LoRA, rank-stabilised or not.
     *
     * @throws IOException when a file is missing or says something that this library does not compute, named
     */
    public static PeftAdapter read(Path directory) throws IOException {
        Path configFile = AdapterFiles.locate(directory, CONFIG);
        if (!Files.exists(configFile)) {
            throw new IOException(configFile + ": expected a PEFT adapter's configuration, found no file");
        }
        JsonNode json;
        try {
            json = JSON.readTree(Files.readString(configFile));
        } catch (JacksonException broken) {
            throw new IOException(configFile + ": expected JSON: " + broken.getOriginalMessage(), broken);
        }
        refuseVariants(configFile, json);
        Path weights = AdapterFiles.locate(directory, WEIGHTS);
        if (!Files.exists(weights)) {
            throw new IOException(weights + ": expected a PEFT adapter's weights, found no file");
        }
        SafetensorsFile file = SafetensorsFile.open(weights);
        try {
            Set<String> targets = targets(configFile, json, file.entries().keySet());
            LoraConfig config = new LoraConfig(
                    json.path("r").asInt(8),
                    json.path("lora_alpha").asDouble(8),
                    json.path("lora_dropout").asDouble(0),
                    targets,
                    json.path("use_rslora").asBoolean(false));
            return new PeftAdapter(config, json.path("base_model_name_or_path").asString(""), file);
        } catch (IllegalArgumentException invalid) {
            file.close();
            throw new IOException(configFile + ": " + invalid.getMessage(), invalid);
        } catch (IOException | RuntimeException failure) {
            file.close();
            throw failure;
        }
    }

    private static void refuseVariants(Path file, JsonNode json) throws IOException {
        if (!json.path("peft_type").asString("").equals("LORA")) {
            throw new IOException(file + ": expected peft_type LORA, found " + json.path("peft_type"));
        }
        for (String flag : new String[]{"use_dora", "use_qalora", "lora_bias"}) {
            if (json.path(flag).asBoolean(false)) {
                throw new IOException(file + ": expected plain LoRA, found " + flag + ", which is not computed here");
            }
        }
        for (String key : new String[]{"rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
                "layer_replication",
                "trainable_token_indices", "target_parameters"}) {
            JsonNode value = json.path(key);
            if (!value.isMissingNode() && !value.isNull() && !(value.isContainer() && value.isEmpty())) {
                throw new IOException(
                        file + ": expected plain LoRA, found " + key + " = " + value + ", which is not computed here");
            }
        }
        if (!json.path("bias").asString("none").equals("none")) {
            throw new IOException(file + ": expected bias none, found " + json.path("bias"));
        }
        if (json.path("fan_in_fan_out").asBoolean(false)) {
            throw new IOException(file + ": expected fan_in_fan_out false for OPT, found true");
        }
    }

    /** A list of names, or a regular expression that a module's whole name must match. */
    private static Set<String> targets(Path file, JsonNode json, Set<String> keys) throws IOException {
        Set<String> present = new LinkedHashSet<>();
        JsonNode wanted = json.path("target_modules");
        for (String key : keys) {
            String module = moduleOf(key);
            String name = module.substring(module.lastIndexOf('.') + 1);
            boolean named = false;
            if (wanted.isArray()) {
                for (JsonNode target : wanted) {
                    named |= module.equals(target.asString()) || module.endsWith("." + target.asString());
                }
            } else if (wanted.isString()) {
                try {
                    named = Pattern.matches(wanted.stringValue(), module);
                } catch (PatternSyntaxException broken) {
                    throw new IOException(file + ": expected target_modules to be a regular expression, found " + wanted,
                            broken);
                }
            }
            if (!named) {
                throw new IOException(file + ": expected target_modules to name every tensor's module, found " + key
                        + " beside " + wanted);
            }
            present.add(name);
        }
        return present;
    }

    /** {@code model.decoder.layers.0.self_attn.q_proj} of its tensors' keys. */
    private static String moduleOf(String key) {
        String module = key.startsWith(KEY_PREFIX) ? key.substring(KEY_PREFIX.length()) : key;
        return module.replaceFirst("\\.lora_[AB]\\.weight$", "");
    }

    /**
     * Writes an adapter; a crash at any moment leaves the old one or the new one, see {@link AdapterFiles}.
     *
     * @param tensors contiguous host tensors by PEFT's keys
     */
    public static void write(Path directory, LoraConfig config, String baseModel, Map<String, Tensor> tensors)
            throws IOException {
        ObjectNode json = JSON.createObjectNode();
        json.put("peft_type", "LORA");
        json.put("task_type", "CAUSAL_LM");
        json.put("base_model_name_or_path", baseModel);
        json.put("r", config.r());
        json.put("lora_alpha", config.loraAlpha());
        json.put("lora_dropout", config.loraDropout());
        var targets = json.putArray("target_modules");
        config.targetModules().forEach(targets::add);
        json.put("bias", "none");
        json.put("fan_in_fan_out", false);
        json.put("inference_mode", true);
        if (config.useRslora()) {
            json.put("use_rslora", true);
        }
        String text = JSON.writerWithDefaultPrettyPrinter().writeValueAsString(json) + "\n";
        AdapterFiles.replace(directory, folder -> {
            SafetensorsWriter.write(folder.resolve(WEIGHTS), tensors, Map.of("format", "pt"));
            AtomicFiles.writeString(folder.resolve(CONFIG), text);
        });
    }

    @Override
    public void close() {
        file.close();
    }
}
