package dev.penumbra.train;

import static java.util.stream.Collectors.joining;
import static java.util.stream.Collectors.toSet;

import dev.penumbra.io.AtomicFiles;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.io.SafetensorsWriter;
import dev.penumbra.io.TextFiles;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/**
 * Folders {@code checkpoint-N}: a PEFT adapter, {@code optimizer.safetensors} and {@code state.json}. A folder gets its name
 * when it is whole, and the one that it replaces is kept until then: a crash while saving leaves the one before.
 */
final class Checkpoints {

    private static final Pattern NAME = Pattern.compile("\\.?checkpoint-(\\d{1,9})(\\.old)?");
    private static final String OPTIMIZER = "optimizer.safetensors";
    private static final String STATE = "state.json";
    private static final JsonMapper JSON = new JsonMapper();

    /** Where a run stands: all that the next step depends on beside the tensors. */
    record State(int step, int epoch, int index, long seed, long microBatch, int tightness, int attentionTightness,
            String settings) {
    }

    private Checkpoints() {
    }

    static Path save(Path output, LoraAdapter adapter, String baseModel, Tensor m, Tensor v, State state)
            throws IOException {
        Path folder = output.resolve("checkpoint-" + state.step());
        ObjectNode json = JSON.createObjectNode();
        json.put("step", state.step());
        json.put("epoch", state.epoch());
        json.put("index", state.index());
        json.put("seed", state.seed());
        json.put("micro_batch", state.microBatch());
        json.put("tightness", state.tightness());
        json.put("attention_tightness", state.attentionTightness());
        json.put("settings", state.settings());
        String text = JSON.writerWithDefaultPrettyPrinter().writeValueAsString(json) + "\n";
        AtomicFiles.writeFolder(folder, whole -> {
            try (Arena arena = Arena.ofConfined()) {
                PeftAdapter.write(whole, adapter.config(), baseModel, adapter.toHost(arena));
                Map<String, Tensor> moments = new LinkedHashMap<>();
                moments.put("m", adapter.toHostFlat(arena, m));
                moments.put("v", adapter.toHostFlat(arena, v));
                SafetensorsWriter.write(whole.resolve(OPTIMIZER), moments, Map.of());
            }
            AtomicFiles.writeString(whole.resolve(STATE), text);
        });
        return folder;
    }

    /** The complete checkpoint of the highest step; of two of one step, the one that replaces the other. */
    static Optional<Path> latest(Path output) throws IOException {
        if (!Files.isDirectory(output)) {
            return Optional.empty();
        }
        try (Stream<Path> entries = Files.list(output)) {
            return entries.map(Checkpoints::step).filter(step -> step >= 0).distinct().sorted(Comparator.reverseOrder())
                    .map(step -> output.resolve("checkpoint-" + step))
                    .flatMap(folder -> Stream.of(folder, AtomicFiles.previous(folder)))
                    .filter(folder -> Files.exists(folder.resolve(STATE))).findFirst();
        }
    }

    private static int step(Path folder) {
        Matcher matcher = NAME.matcher(folder.getFileName().toString());
        return matcher.matches() ? Integer.parseInt(matcher.group(1)) : -1;
    }

    /**
     * Reads a checkpoint into an adapter and its moments.
     *
     * @param settings of the run that goes on from it
     * @throws TrainingException when it is that of a run with other settings or another adapter's, naming the folder and all in
     *         which they differ
     */
    static State load(Path folder, LoraAdapter adapter, Tensor m, Tensor v, String settings) throws IOException {
        State state = state(folder.resolve(STATE));
        try (PeftAdapter saved = PeftAdapter.read(folder);
                SafetensorsFile moments = SafetensorsFile.open(folder.resolve(OPTIMIZER))) {
            String found = settings(saved.config()) + " " + state.settings();
            String expected = settings(adapter.config()) + " " + settings;
            if (!found.equals(expected)) {
                throw new TrainingException(folder + ": expected a checkpoint of a run with the same settings, found "
                        + differing(found, expected) + " where this run has " + differing(expected, found));
            }
            adapter.load(saved.tensors());
            restore(adapter, moments, "m", m);
            restore(adapter, moments, "v", v);
            adapter.backend().synchronize();
        } catch (IllegalArgumentException mismatch) {
            throw new TrainingException(folder + ": " + mismatch.getMessage(), mismatch);
        }
        return state;
    }

    /** An adapter's, in the words of a run's own. */
    private static String settings(LoraConfig config) {
        return "lora_r=" + config.r() + " lora_alpha=" + config.loraAlpha() + " lora_dropout=" + config.loraDropout()
                + " targets=" + String.join(",", config.targetModules()) + " use_rslora=" + config.useRslora();
    }

    /** What settings have that others have not. */
    private static String differing(String settings, String others) {
        Set<String> known = parts(others).collect(toSet());
        String differing = parts(settings).filter(part -> !known.contains(part)).collect(joining(" "));
        return differing.isEmpty() ? "nothing" : differing;
    }

    /** What is said of sparsity is one part: its words have meaning together. */
    private static Stream<String> parts(String settings) {
        String[] groups = settings.split(" (?=(sparsity|calibration|attention|attention_calibration)=)");
        return Stream.concat(Stream.of(groups[0].split(" ")), Stream.of(groups).skip(1));
    }

    private static void restore(LoraAdapter adapter, SafetensorsFile moments, String name, Tensor target) {
        try (Arena arena = Arena.ofConfined()) {
            Tensor saved = moment(moments, name, target);
            Tensor host = Tensor.allocate(arena, saved.dtype(), saved.shape());
            host.segment().copyFrom(saved.segment());
            adapter.upload(host, target);
        }
    }

    private static Tensor moment(SafetensorsFile moments, String name, Tensor expected) {
        Tensor saved = moments.tensor(name);
        if (saved.dtype() != expected.dtype() || !saved.shape().equals(expected.shape())) {
            throw new TrainingException(
                    moments.file() + ": tensor " + name + ": expected " + expected + ", found " + saved);
        }
        return saved;
    }

    private static State state(Path file) throws IOException {
        TextFiles.requireFile(file);
        try {
            JsonNode json = JSON.readTree(Files.readAllBytes(file));
            return new State(json.required("step").intValue(), json.required("epoch").intValue(),
                    json.required("index").intValue(), json.required("seed").longValue(),
                    json.required("micro_batch").longValue(), json.path("tightness").asInt(0),
                    json.path("attention_tightness").asInt(0),
                    json.required("settings").stringValue());
        } catch (JacksonException broken) {
            throw new TrainingException(file + ": expected a checkpoint's state: " + TextFiles.problem(broken), broken);
        }
    }
}
