package dev.penumbra.train;

import dev.penumbra.io.AtomicFiles;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.io.SafetensorsWriter;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/**
 * Folders {@code checkpoint-N}: a PEFT adapter, {@code optimizer.safetensors} and {@code state.json}. The state is written
 * last, and a folder without one is no checkpoint: a crash while saving leaves the one before.
 */
final class Checkpoints {

    private static final Pattern NAME = Pattern.compile("checkpoint-(\\d+)");
    private static final JsonMapper JSON = new JsonMapper();

    /** Where a run stands: all that the next step depends on beside the tensors. */
    record State(int step, int epoch, int index, long seed, long microBatch, String settings) {
    }

    private Checkpoints() {
    }

    static Path save(Path output, LoraAdapter adapter, String baseModel, Tensor m, Tensor v, State state)
            throws IOException {
        Path folder = output.resolve("checkpoint-" + state.step());
        try (Arena arena = Arena.ofConfined()) {
            PeftAdapter.write(folder, adapter.config(), baseModel, adapter.toHost(arena));
            Map<String, Tensor> moments = new LinkedHashMap<>();
            moments.put("m", host(adapter, arena, m));
            moments.put("v", host(adapter, arena, v));
            SafetensorsWriter.write(folder.resolve("optimizer.safetensors"), moments, Map.of());
        }
        ObjectNode json = JSON.createObjectNode();
        json.put("step", state.step());
        json.put("epoch", state.epoch());
        json.put("index", state.index());
        json.put("seed", state.seed());
        json.put("micro_batch", state.microBatch());
        json.put("settings", state.settings());
        AtomicFiles.writeString(folder.resolve("state.json"),
                JSON.writerWithDefaultPrettyPrinter().writeValueAsString(json) + "\n");
        return folder;
    }

    private static Tensor host(LoraAdapter adapter, Arena arena, Tensor device) {
        Tensor host = Tensor.allocate(arena, DType.F32, device.shape());
        adapter.backend().download(device, host);
        return host;
    }

    /** The complete checkpoint of the highest step. */
    static Optional<Path> latest(Path output) throws IOException {
        if (!Files.isDirectory(output)) {
            return Optional.empty();
        }
        try (Stream<Path> entries = Files.list(output)) {
            List<Path> complete = entries.filter(p -> step(p) >= 0 && Files.exists(p.resolve("state.json"))).toList();
            return complete.stream().max(Comparator.comparingInt(Checkpoints::step));
        }
    }

    private static int step(Path folder) {
        Matcher matcher = NAME.matcher(folder.getFileName().toString());
        return matcher.matches() ? Integer.parseInt(matcher.group(1)) : -1;
    }

    static State load(Path folder, LoraAdapter adapter, Tensor m, Tensor v) throws IOException {
        JsonNode json = JSON.readTree(Files.readString(folder.resolve("state.json")));
        try (PeftAdapter saved = PeftAdapter.read(folder);
                SafetensorsFile moments = SafetensorsFile.open(folder.resolve("optimizer.safetensors"))) {
            if (!saved.config().equals(adapter.config())) {
                throw new TrainingException(
                        folder + ": expected an adapter of " + adapter.config() + ", found " + saved.config());
            }
            adapter.load(saved.tensors());
            adapter.backend().upload(moments.tensor("m"), m);
            adapter.backend().upload(moments.tensor("v"), v);
            adapter.backend().synchronize();
        }
        return new State(
                json.path("step").asInt(), json.path("epoch").asInt(), json.path("index").asInt(),
                json.path("seed").asLong(),
                json.path("micro_batch").asLong(), json.path("settings").asString(""));
    }
}
