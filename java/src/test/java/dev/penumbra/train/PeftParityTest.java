package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
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
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** Against what transformers and PEFT compute; {@code src/test/python/make_fixtures.py} made the fixtures. */
class PeftParityTest {

    private static final Path FIXTURES = Path.of("src/test/resources/parity");
    private static final int TOKENS = 64;

    @ParameterizedTest(name = "{0} on {1}")
    @CsvSource({"pre-norm,cpu", "post-norm,cpu", "some-targets,cpu", "pre-norm,java", "post-norm,java", "some-targets,java"})
    void logitsLossAndGradientsAreThoseOfPeft(String name, String device) throws IOException {
        try (Fixture f = new Fixture(name, device)) {
            ModelPass pass = f.model.openPass(f.arena, f.adapter, new PassShape(TOKENS, TOKENS, true));
            Batch batch = f.batches(true).next();
            pass.forward(batch, null);

            Tensor logits = f.backend.allocate(f.arena, DType.F32, Shape.of(batch.realTokens(), f.model.vocabSize()));
            pass.logits(logits);
            // Packing puts the longest sample first: compare sample by sample.
            float[] all = f.host(logits);
            float[] expected = f.expected.tensor("logits").toFloats();
            assertThat(relative(all, f.inPackedOrder(expected, f.model.vocabSize()))).as("logits").isLessThan(1e-5);

            Tensor loss = f.backend.allocate(f.arena, DType.F32, Shape.of(1));
            Tensor scale = f.backend.allocate(f.arena, DType.F32, Shape.of(1));
            Tensor grad = f.backend.allocate(f.arena, DType.F32, f.adapter.parameters().shape());
            Scalars.write(f.backend, scale, 1f / batch.rows().length);
            pass.addLossAndGradients(loss, scale, grad);
            double mean = Scalars.read(f.backend, loss) / batch.rows().length;
            double wanted = f.json.path("loss").asDouble();
            assertThat(Math.abs(mean - wanted) / wanted).as("loss " + mean + " against " + wanted).isLessThan(1e-5);

            double worst = 0;
            for (Map.Entry<String, Tensor> named : f.adapter.toHost(f.arena, grad).entrySet()) {
                double error = relative(named.getValue().toFloats(), f.expected.tensor("grad." + named.getKey()).toFloats());
                assertThat(error).as(named.getKey()).isLessThan(1e-4);
                worst = Math.max(worst, error);
            }
            System.out.printf("%s on %s: logits %.1e, loss %.1e, worst gradient %.1e%n", name, device,
                    relative(all, f.inPackedOrder(expected, f.model.vocabSize())), Math.abs(mean - wanted) / wanted, worst);
        }
    }

    @ParameterizedTest(name = "{0}, packed {1}")
    @CsvSource({"pre-norm,true", "post-norm,true", "some-targets,true", "pre-norm,false", "post-norm,false"})
    void twentyStepsOfAdamWHaveTheLossesOfPyTorch(String name, boolean pack) throws IOException {
        try (Fixture f = new Fixture(name, "cpu")) {
            TrainConfig config = TrainConfig.builder().steps(20).batchSize(3).seqLen(40).lr(f.json.path("lr").asDouble())
                    .schedule(Schedule.CONSTANT).clip(0).pack(pack).shuffle(false).build();
            List<Double> losses = new ArrayList<>();
            new Trainer(f.model, f.adapter, config, f.data(), null).listener(m -> losses.add(m.loss())).run();
            double worst = 0;
            for (int i = 0; i < 20; i++) {
                double wanted = f.json.path("losses").get(i).asDouble();
                worst = Math.max(worst, Math.abs(losses.get(i) - wanted) / wanted);
            }
            System.out.printf("%s: worst of 20 losses %.1e%n", name, worst);
            assertThat(losses).hasSize(20);
            assertThat(worst).isLessThan(1e-4);
        }
    }

    static double relative(float[] found, float[] expected) {
        assertThat(found).hasSameSizeAs(expected);
        double difference = 0;
        double norm = 0;
        for (int i = 0; i < found.length; i++) {
            difference += Math.pow((double) found[i] - expected[i], 2);
            norm += Math.pow(expected[i], 2);
        }
        return Math.sqrt(difference / norm);
    }

    /** One fixture, loaded. */
    static final class Fixture implements AutoCloseable {
        final Arena arena = Arena.ofShared();
        final Backend backend;
        final Opt model;
        final LoraAdapter adapter;
        final SafetensorsFile expected;
        final JsonNode json;

        Fixture(String name, String device) throws IOException {
            Path folder = FIXTURES.resolve(name);
            backend = switch (device) {
                case "java" -> new FakeBackend();
                case "java-asynchronous" -> new FakeBackend(true);
                default -> Backends.open(Device.CPU, 1, true);
            };
            try (ModelFolder files = ModelFolder.open(folder)) {
                model = Opt.load(backend, arena, files, DType.F32);
            }
            try (PeftAdapter saved = PeftAdapter.read(folder.resolve("adapter"))) {
                adapter = LoraAdapter.of(backend, arena, saved.config(), model.adaptableLayers(), model.peftPrefix(),
                        saved.tensors());
            }
            expected = SafetensorsFile.open(folder.resolve("expected.safetensors"));
            json = new JsonMapper().readTree(Files.readString(folder.resolve("expected.json")));
        }

        Dataset data() {
            List<Sample> samples = new ArrayList<>();
            for (int s = 0; s < json.path("samples").size(); s++) {
                JsonNode tokens = json.path("samples").get(s);
                int[] ids = new int[tokens.size()];
                boolean[] supervised = new boolean[ids.length];
                for (int i = 0; i < ids.length; i++) {
                    ids[i] = tokens.get(i).asInt();
                    supervised[i] = i >= json.path("prompts").get(s).asInt();
                }
                samples.add(new Sample(ids, supervised));
            }
            return Dataset.of(samples);
        }

        Batches batches(boolean pack) {
            return new Batches(data(), 3, TOKENS, pack, false, 0);
        }

        /** Rows of the samples as stored, in the order in which packing lays them: longest first. */
        float[] inPackedOrder(float[] rows, int width) {
            Dataset data = data();
            List<Integer> order = new ArrayList<>(List.of(0, 1, 2));
            order.sort((a, b) -> data.get(b).length() - data.get(a).length());
            float[] result = new float[rows.length];
            int at = 0;
            for (int sample : order) {
                int from = 0;
                for (int s = 0; s < sample; s++) {
                    from += data.get(s).length();
                }
                System.arraycopy(rows, from * width, result, at * width, data.get(sample).length() * width);
                at += data.get(sample).length();
            }
            return result;
        }

        float[] host(Tensor device) {
            Tensor host = Tensor.allocate(arena, device.dtype(), device.shape());
            backend.download(device, host);
            return host.toFloats();
        }

        @Override
        public void close() {
            expected.close();
            arena.close();
            backend.close();
        }
    }
}
