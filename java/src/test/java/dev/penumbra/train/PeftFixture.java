package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backend;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.Opt;
import dev.penumbra.model.PassShape;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.IntStream;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** A model, an adapter, samples, and what transformers and PEFT compute with them, made by {@code make_fixtures.py}. */
final class PeftFixture implements AutoCloseable {

    static final Path COMMITTED = Path.of("src/test/resources/parity");

    final Arena arena = Arena.ofShared();
    final Backend backend;
    final Opt model;
    final LoraAdapter adapter;
    final JsonNode told;
    private final SafetensorsFile expected;

    /** Takes the backend, and closes it. */
    PeftFixture(Path folder, Backend backend, DType compute) throws IOException {
        this.backend = backend;
        try (ModelFolder files = ModelFolder.open(folder)) {
            model = Opt.load(backend, arena, files, compute);
        }
        try (PeftAdapter saved = PeftAdapter.read(folder.resolve("adapter"))) {
            adapter = LoraAdapter.of(backend, arena, saved.config(), model.adaptableLayers(), model.peftPrefix(),
                    saved.tensors());
        }
        expected = SafetensorsFile.open(folder.resolve("expected.safetensors"));
        told = new JsonMapper().readTree(Files.readString(folder.resolve("expected.json")));
    }

    Dataset data() {
        List<Sample> samples = new ArrayList<>();
        for (int s = 0; s < told.path("samples").size(); s++) {
            JsonNode tokens = told.path("samples").get(s);
            int[] ids = new int[tokens.size()];
            boolean[] supervised = new boolean[ids.length];
            for (int i = 0; i < ids.length; i++) {
                ids[i] = tokens.get(i).asInt();
                supervised[i] = i >= told.path("prompts").get(s).asInt();
            }
            samples.add(new Sample(ids, supervised));
        }
        return Dataset.of(samples);
    }

    /** Logits [tokens, vocab] of all samples, one after another. */
    float[] expectedLogits() {
        return expected.tensor("logits").toFloats();
    }

    /** |found − expected| / |expected| of the loss, the "logits" and the gradient of every LoRA matrix, "grad." and its key. */
    Map<String, Double> errors() {
        Dataset data = data();
        int tokens = IntStream.range(0, data.size()).map(s -> data.get(s).length()).sum();
        ModelPass pass = model.openPass(arena, adapter, new PassShape(tokens, tokens, true));
        Batch batch = new Batches(data, 1, tokens, true, false, 0).next();
        pass.forward(batch, null);
        Tensor logits = backend.allocate(arena, DType.F32, Shape.of(batch.tokens(), model.vocabSize()));
        pass.logits(logits);
        Tensor loss = backend.allocate(arena, DType.F32, Shape.of(1));
        Tensor scale = backend.allocate(arena, DType.F32, Shape.of(1));
        Tensor grad = backend.allocate(arena, DType.F32, adapter.parameters().shape());
        Scalars.write(backend, scale, 1f / batch.rows().length);
        pass.addLossAndGradients(loss, scale, grad);

        Map<String, Double> errors = new TreeMap<>();
        double mean = Scalars.read(backend, loss) / batch.rows().length;
        errors.put("loss", Math.abs(mean / told.path("loss").asDouble() - 1));
        errors.put("logits", relativeError(host(logits), inPackedOrder(expectedLogits(), data)));
        adapter.toHost(arena, grad).forEach((key, matrix) -> errors.put("grad." + key,
                relativeError(matrix.toFloats(), expected.tensor("grad." + key).toFloats())));
        return errors;
    }

    /** Of the samples' rows as stored those that one packed row of them has: the longest first, each to its last prediction. */
    private float[] inPackedOrder(float[] rows, Dataset data) {
        int width = model.vocabSize();
        int[] starts = new int[data.size()];
        for (int s = 1; s < starts.length; s++) {
            starts[s] = starts[s - 1] + data.get(s - 1).length();
        }
        List<Integer> longestFirst = new ArrayList<>(IntStream.range(0, data.size()).boxed().toList());
        longestFirst.sort((a, b) -> data.get(b).readLength() - data.get(a).readLength());
        float[] packed = new float[longestFirst.stream().mapToInt(s -> data.get(s).readLength()).sum() * width];
        int at = 0;
        for (int s : longestFirst) {
            System.arraycopy(rows, starts[s] * width, packed, at * width, data.get(s).readLength() * width);
            at += data.get(s).readLength();
        }
        return packed;
    }

    float[] host(Tensor device) {
        Tensor host = Tensor.allocate(arena, device.dtype(), device.shape());
        backend.download(device, host);
        return host.toFloats();
    }

    /** |found − expected| / |expected|, Euclidean. */
    static double relativeError(float[] found, float[] expected) {
        assertThat(found).hasSameSizeAs(expected);
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < found.length; i++) {
            difference += Math.pow((double) found[i] - expected[i], 2);
            norm += Math.pow(expected[i], 2);
        }
        return Math.sqrt(difference / norm);
    }

    @Override
    public void close() {
        expected.close();
        arena.close();
        backend.close();
    }
}
