package dev.penumbra.io;

import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.stream.Stream;
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
    private static final String A = ".lora_A.weight";
    private static final String B = ".lora_B.weight";
    private static final JsonMapper JSON = new JsonMapper();

    private final Path directory;
    private final LoraConfig config;
    private final String baseModel;
    private final SafetensorsFile file;
    private final Map<String, Tensor> tensors;

    private PeftAdapter(Path directory, LoraConfig config, String baseModel, SafetensorsFile file,
            Map<String, Tensor> tensors) {
        this.directory = directory;
        this.config = config;
        this.baseModel = baseModel;
        this.file = file;
        this.tensors = Collections.unmodifiableMap(tensors);
    }

    /** As it was given. */
    public Path directory() {
        return directory;
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
        return tensors;
    }

    /**
     * Reads an adapter of plain LoRA, rank-stabilised or not: an A [r, in] and a B [out, r] of each adapted module.
     *
     * @throws IOException when a file is missing or says something that this library does not compute, named
     * @throws SafetensorsException when the weights are malformed
     */
    public static PeftAdapter read(Path directory) throws IOException {
        Path configFile = AdapterFiles.locate(directory, CONFIG);
        PeftConfig read = new PeftConfig(configFile);
        Path weights = AdapterFiles.locate(directory, WEIGHTS);
        if (!Files.exists(weights)) {
            throw new IOException(weights + ": expected a PEFT adapter's weights, found no file");
        }
        SafetensorsFile file = SafetensorsFile.open(weights);
        try {
            Map<String, Tensor> tensors = new TreeMap<>();
            Set<String> modules = new TreeSet<>();
            for (String key : file.entries().keySet()) {
                modules.add(moduleOf(file, key));
                tensors.put(key, file.tensor(key));
            }
            for (String module : modules) {
                requirePair(weights, tensors, module, read.r());
            }
            if (modules.isEmpty()) {
                throw new IOException(weights + ": expected tensors of adapted modules, found none");
            }
            LoraConfig config = new LoraConfig(
                    read.r(), read.loraAlpha(), read.loraDropout(), read.targetKinds(modules), read.useRslora());
            return new PeftAdapter(directory, config, read.baseModel(), file, tensors);
        } catch (IllegalArgumentException invalid) {
            file.close();
            throw new IOException(configFile + ": " + invalid.getMessage(), invalid);
        } catch (IOException | RuntimeException failure) {
            file.close();
            throw failure;
        }
    }

    /** Names of an adapter's files that are in {@code directory}; none where it has no adapter, not even half of one. */
    public static List<String> filesIn(Path directory) {
        return Stream.of(CONFIG, WEIGHTS).filter(name -> Files.exists(AdapterFiles.locate(directory, name))).toList();
    }

    /** {@code model.decoder.layers.0.self_attn.q_proj} of its tensors' keys. */
    private static String moduleOf(SafetensorsFile file, String key) throws IOException {
        for (String suffix : new String[]{A, B}) {
            if (key.startsWith(KEY_PREFIX) && key.endsWith(suffix) && key.length() > KEY_PREFIX.length() + suffix.length()) {
                return key.substring(KEY_PREFIX.length(), key.length() - suffix.length());
            }
        }
        throw new IOException(file.file() + ": expected tensors " + KEY_PREFIX + "MODULE" + A + " and " + B + " only, found "
                + key + ", which is not computed here");
    }

    private static void requirePair(Path file, Map<String, Tensor> tensors, String module, int r) throws IOException {
        for (String suffix : new String[]{A, B}) {
            String key = KEY_PREFIX + module + suffix;
            Tensor tensor = tensors.get(key);
            if (tensor == null) {
                throw new IOException(file + ": expected a tensor " + key + " beside the other half, found none");
            }
            boolean rows = suffix.equals(A);
            if (tensor.shape().rank() != 2 || tensor.shape().dim(rows ? 0 : 1) != r) {
                throw new IOException(file + ": tensor " + key + ": expected shape " + (rows ? "[r, in]" : "[out, r]")
                        + " with the configuration's r = " + r + ", found " + tensor.shape());
            }
            if (!tensor.dtype().isFloat()) {
                throw new IOException(file + ": tensor " + key + ": expected F32, BF16 or F16, found " + tensor.dtype());
            }
            float[] values = tensor.toFloats();
            for (int i = 0; i < values.length; i++) {
                if (!Float.isFinite(values[i])) {
                    throw new IOException(
                            file + ": tensor " + key + ": expected finite weights, found " + values[i] + " at element " + i);
                }
            }
        }
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

    @Override
    public String toString() {
        return file + ", " + config;
    }
}
