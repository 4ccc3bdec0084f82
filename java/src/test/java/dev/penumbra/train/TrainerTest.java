package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.DataException;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.io.RunLock;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.KeyValueCache;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.model.ModelException;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.Opt;
import dev.penumbra.model.PassShape;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.OptionalLong;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class TrainerTest {

    private static final Set<String> ALL = Set.of("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2");

    private static Dataset data(int size) {
        SplittableRandom random = new SplittableRandom(5);
        List<Sample> samples = new ArrayList<>();
        for (int s = 0; s < size; s++) {
            int[] ids = random.ints(random.nextInt(6, 20), 4, 61).toArray();
            boolean[] supervised = new boolean[ids.length];
            Arrays.fill(supervised, random.nextInt(1, 5), ids.length, true);
            samples.add(new Sample(ids, supervised));
        }
        return Dataset.of(samples);
    }

    private static PeftFixture fixture(String name) throws IOException {
        return fixture(name, Backends.open(Device.CPU, 1, true));
    }

    private static PeftFixture fixture(String name, Backend backend) throws IOException {
        return new PeftFixture(PeftFixture.COMMITTED.resolve(name), backend, DType.F32);
    }

    private static TrainConfig.Builder config() {
        return TrainConfig.builder().steps(6).batchSize(2).seqLen(24).lr(1e-3).warmupSteps(2).seed(7);
    }

    private static LoraAdapter adapter(PeftFixture f, Arena arena, double dropout) {
        return LoraAdapter.create(f.backend, arena, new LoraConfig(3, 6, dropout, ALL, false), f.model.adaptableLayers(),
                f.model.peftPrefix(), 3);
    }

    private static List<Double> train(PeftFixture f, LoraAdapter adapter, TrainConfig config, int cancelAfter) {
        List<Double> losses = new ArrayList<>();
        Trainer trainer = new Trainer(f.model, adapter, config, data(12), null);
        trainer.listener(m -> {
            losses.add(m.loss());
            if (m.step() == cancelAfter) {
                trainer.cancel();
            }
        });
        trainer.run();
        return losses;
    }

    @Test
    void equalRunsGiveEqualBitsWithDropout() throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            LoraAdapter first = adapter(f, arena, 0.2);
            LoraAdapter second = adapter(f, arena, 0.2);
            LoraAdapter without = adapter(f, arena, 0);
            List<Double> losses = train(f, first, config().build(), -1);
            assertThat(train(f, second, config().build(), -1)).isEqualTo(losses);
            assertThat(second.parametersToHost()).isEqualTo(first.parametersToHost());
            assertThat(train(f, without, config().build(), -1)).isNotEqualTo(losses);
        }
    }

    @Test
    void aDeviceThatComputesBehindTheHostGivesTheSameLosses() throws IOException {
        List<Double> atOnce;
        try (PeftFixture f = fixture("pre-norm", new FakeBackend()); Arena arena = Arena.ofShared()) {
            atOnce = train(f, adapter(f, arena, 0.1), config().gradAccum(2).build(), -1);
        }
        try (PeftFixture f = fixture("pre-norm", new FakeBackend(true)); Arena arena = Arena.ofShared()) {
            List<Double> behind = train(f, adapter(f, arena, 0.1), config().gradAccum(2).build(), -1);
            assertThat(behind).hasSize(atOnce.size());
            for (int i = 0; i < atOnce.size(); i++) {
                assertThat(behind.get(i)).isCloseTo(atOnce.get(i), within(1e-6));
            }
            assertThat(((FakeBackend) f.backend).pendingReads()).isZero();
        }
    }

    @Test
    void aResumedRunContinuesToTheLossesOfAnUninterruptedOne(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            List<Double> whole = train(f, adapter(f, arena, 0.1), config().output(dir.resolve("a")).build(), -1);
            TrainConfig config = config().output(dir.resolve("b")).build();
            List<Double> parts = new ArrayList<>(train(f, adapter(f, arena, 0.1), config, 4));
            assertThat(parts).hasSize(4);
            assertThat(dir.resolve("b/checkpoint-4/state.json")).exists();
            parts.addAll(train(f, adapter(f, arena, 0.1), config().output(dir.resolve("b")).resume(true).build(), -1));
            assertThat(parts).isEqualTo(whole);
            assertThat(Files.readAllBytes(dir.resolve("b/adapter_model.safetensors")))
                    .isEqualTo(Files.readAllBytes(dir.resolve("a/adapter_model.safetensors")));
        }
    }

    @Test
    void aRunThatIsCancelledBeforeItsFirstStepSavesNothing(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            Trainer trainer = new Trainer(f.model, adapter(f, arena, 0), config().output(dir).build(), data(12), null);
            trainer.cancel();
            assertThat(trainer.run()).isNull();
            assertThat(trainer.stepsDone()).isZero();
            assertThat(dir.toFile().list()).containsExactly(".lock");
            assertThat(train(f, adapter(f, arena, 0), config().output(dir).build(), -1)).as("a new run there").hasSize(6);
        }
    }

    @Test
    void aResumedRunThatIsCancelledAtOnceLeavesTheCheckpointAsItWas(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            train(f, adapter(f, arena, 0), config().output(dir).build(), 4);
            Trainer trainer = new Trainer(f.model, adapter(f, arena, 0), config().output(dir).resume(true).build(), data(12),
                    null);
            List<Integer> saves = new ArrayList<>();
            trainer.listener(new StepListener() {
                @Override
                public void onStep(StepMetrics metrics) {
                    throw new AssertionError("expected no step, found " + metrics);
                }

                @Override
                public void onSave(int step, Path folder) {
                    saves.add(step);
                }
            });
            trainer.cancel();
            assertThat(trainer.run()).isNull();
            assertThat(trainer.stepsDone()).isEqualTo(4);
            assertThat(saves).isEmpty();
        }
    }

    @Test
    void aRunThatIsCancelledAfterAWarmUpStepOfRateZeroEndsWell(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            List<Double> whole = train(f, adapter(f, arena, 0), config().build(), -1);
            List<Double> parts = new ArrayList<>(train(f, adapter(f, arena, 0), config().output(dir).build(), 1));
            assertThat(dir.resolve("checkpoint-1")).exists();
            parts.addAll(train(f, adapter(f, arena, 0), config().output(dir).resume(true).build(), -1));
            assertThat(parts).isEqualTo(whole);
        }
    }

    @Test
    void aRunThatWasKilledAfterItsLastCheckpointWritesItsAdapterWhenItIsResumed(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            TrainConfig.Builder saving = config().saveEvery(3).output(dir);
            LoraAdapter trained = adapter(f, arena, 0);
            train(f, trained, saving.build(), -1);
            byte[] weights = Files.readAllBytes(dir.resolve("adapter_model.safetensors"));
            deleteAdapter(dir);
            assertThat(train(f, adapter(f, arena, 0), saving.resume(true).build(), -1)).as("steps left").isEmpty();
            assertThat(dir.resolve("adapter_config.json")).exists();
            assertThat(dir.resolve("adapter_model.safetensors")).hasBinaryContent(weights);
            assertThat(train(f, trained, saving.build(), -1)).as("once more, the adapter being what it becomes").isEmpty();
        }
    }

    @Test
    void anAdapterThatNoCheckpointLeadsToIsNotOverwritten(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            train(f, adapter(f, arena, 0), config().output(dir).build(), -1);
            byte[] weights = Files.readAllBytes(dir.resolve("adapter_model.safetensors"));
            LoraAdapter untouched = adapter(f, arena, 0);
            float[] initial = untouched.parametersToHost();
            String refusal = dir + ": expected no adapter of another run, found adapter_config.json and"
                    + " adapter_model.safetensors";
            assertThatThrownBy(() -> train(f, untouched, config().output(dir).lr(2e-3).build(), -1))
                    .isInstanceOf(TrainingException.class)
                    .hasMessage(refusal + ": move it away or choose another folder");
            TrainConfig resumed = config().output(dir).resume(true).build();
            assertThatThrownBy(() -> train(f, untouched, resumed, -1)).isInstanceOf(TrainingException.class)
                    .hasMessage(refusal + " without a checkpoint to resume: move it away or choose another folder");
            Files.delete(dir.resolve("adapter_config.json"));
            assertThatThrownBy(() -> train(f, untouched, resumed, -1)).as("half an adapter")
                    .isInstanceOf(TrainingException.class).hasMessageContaining("found adapter_model.safetensors without");
            assertThat(untouched.parametersToHost()).isEqualTo(initial);
            assertThat(dir.resolve("adapter_model.safetensors")).hasBinaryContent(weights);
        }
    }

    @Test
    void aResumedRunWithOtherSettingsIsRefused(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            train(f, adapter(f, arena, 0), config().output(dir).saveEvery(3).build(), -1);
            assertThatThrownBy(() -> train(f, adapter(f, arena, 0), config().lr(2e-3).output(dir).resume(true).build(), -1))
                    .isInstanceOf(TrainingException.class)
                    .hasMessageEndingWith("checkpoint-6: expected a checkpoint of a run with the same settings,"
                            + " found lr=0.001 where this run has lr=0.002");
            LoraAdapter other = LoraAdapter.create(f.backend, arena, new LoraConfig(4, 6, 0, Set.of("v_proj"), false),
                    f.model.adaptableLayers(), f.model.peftPrefix(), 3);
            assertThatThrownBy(() -> train(f, other, config().lr(2e-3).output(dir).resume(true).build(), -1))
                    .isInstanceOf(TrainingException.class)
                    .hasMessageEndingWith(
                            "checkpoint-6: expected a checkpoint of a run with the same settings, found lora_r=3"
                                    + " targets=q_proj,k_proj,v_proj,out_proj,fc1,fc2 lr=0.001 where this run has lora_r=4"
                                    + " targets=v_proj lr=0.002");
        }
    }

    @Test
    void aResumedRunOfAnotherModelOfTheSameShapeIsRefused(@TempDir Path dir) throws IOException {
        Path output = dir.resolve("output");
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            train(f, adapter(f, arena, 0), config().output(output).saveEvery(3).build(), -1);
        }
        Path other = Files.createDirectory(dir.resolve("other"));
        Path committed = PeftFixture.COMMITTED.resolve("pre-norm");
        Files.copy(committed.resolve("config.json"), other.resolve("config.json"));
        byte[] weights = Files.readAllBytes(committed.resolve("model.safetensors"));
        weights[weights.length - 1] ^= (byte) 0x80;
        Files.write(other.resolve("model.safetensors"), weights);
        try (Arena arena = Arena.ofShared();
                Backend backend = Backends.open(Device.CPU, 1, true);
                ModelFolder files = ModelFolder.open(other)) {
            Opt model = Opt.load(backend, arena, files, DType.F32);
            LoraAdapter adapter = LoraAdapter.create(backend, arena, new LoraConfig(3, 6, 0, ALL, false),
                    model.adaptableLayers(), model.peftPrefix(), 3);
            TrainConfig resumed = config().output(output).resume(true).build();
            assertThatThrownBy(() -> new Trainer(model, adapter, resumed, data(12), null).run())
                    .isInstanceOf(TrainingException.class)
                    .hasMessageMatching(".*checkpoint-6: expected a checkpoint of a run with the same settings,"
                            + " found weights=[0-9a-f]{16} where this run has weights=[0-9a-f]{16}");
        }
    }

    @Test
    void aResumedRunOnOtherDataIsRefusedAndSoIsANewRunAmongCheckpoints(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            train(f, adapter(f, arena, 0), config().output(dir).saveEvery(3).build(), -1);
            byte[] saved = Files.readAllBytes(dir.resolve("checkpoint-6/adapter_model.safetensors"));
            List<Sample> samples = new ArrayList<>();
            for (int i = 0; i < 12; i++) {
                samples.add(data(12).get(i));
            }
            samples.get(7).ids()[3]++;
            TrainConfig resumed = config().output(dir).resume(true).build();
            assertThatThrownBy(() -> new Trainer(f.model, adapter(f, arena, 0), resumed, Dataset.of(samples), null).run())
                    .isInstanceOf(TrainingException.class)
                    .hasMessageContaining("checkpoint-6: expected a checkpoint of a run");
            assertThatThrownBy(() -> train(f, adapter(f, arena, 0), config().output(dir).build(), -1))
                    .isInstanceOf(TrainingException.class)
                    .hasMessageContaining(dir + ": expected no checkpoints of another run, found checkpoint-6");
            assertThat(Files.readAllBytes(dir.resolve("checkpoint-6/adapter_model.safetensors"))).isEqualTo(saved);
        }
    }

    @Test
    void accumulatedMicroBatchesEqualOneBigBatch() throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            LoraAdapter big = adapter(f, arena, 0);
            LoraAdapter small = adapter(f, arena, 0);
            TrainConfig.Builder base = config().steps(3).pack(false).shuffle(false).clip(0);
            List<Double> one = train(f, big, base.batchSize(4).gradAccum(1).build(), -1);
            List<Double> many = train(f, small, base.batchSize(1).gradAccum(4).build(), -1);
            for (int i = 0; i < 3; i++) {
                assertThat(Math.abs(many.get(i) / one.get(i) - 1)).isLessThan(1e-6);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"pre-norm", "post-norm"})
    void packedAndUnpackedGiveEqualLossAndGradients(String name) throws IOException {
        try (PeftFixture f = fixture(name)) {
            float[][] grads = new float[2][];
            double[] losses = new double[2];
            for (int i = 0; i < 2; i++) {
                ModelPass pass = f.model.openPass(f.arena, f.adapter, new PassShape(256, 24, true));
                Batch batch = new Batches(data(10), 10, 24, i == 0, false, 0).next();
                Tensor loss = f.backend.allocate(f.arena, DType.F32, Shape.of(1));
                Tensor scale = f.backend.allocate(f.arena, DType.F32, Shape.of(1));
                Tensor grad = f.backend.allocate(f.arena, DType.F32, f.adapter.parameters().shape());
                Scalars.write(f.backend, scale, 1f / batch.rows().length);
                pass.forward(batch, null);
                pass.addLossAndGradients(loss, scale, grad);
                losses[i] = Scalars.read(f.backend, loss) / batch.rows().length;
                grads[i] = f.host(grad);
            }
            System.out.printf("%s: packed against unpacked: loss %.1e, gradients %.1e%n", name,
                    Math.abs(losses[1] / losses[0] - 1), PeftFixture.relativeError(grads[1], grads[0]));
            assertThat(Math.abs(losses[1] / losses[0] - 1)).isLessThan(1e-6);
            assertThat(PeftFixture.relativeError(grads[1], grads[0])).isLessThan(1e-5);
        }
    }

    @Test
    void theWholeTrainerRunsOnARecordingBackendAndStopsAtTheLowestAdapter() throws IOException {
        try (PeftFixture f = fixture("some-targets", new FakeBackend());
                Arena arena = Arena.ofShared()) {
            FakeBackend fake = (FakeBackend) f.backend;
            LoraAdapter adapter = adapter(f, arena, 0);
            long[] afterFirst = new long[1];
            new Trainer(f.model, adapter, config().steps(3).build(), data(6), null).listener(m -> {
                if (m.step() == 1) {
                    afterFirst[0] = fake.allocatedBytes();
                    fake.forgetOperations();
                } else {
                    assertThat(fake.allocatedBytes()).as("bytes allocated within step " + m.step()).isEqualTo(afterFirst[0]);
                }
            }).run();
            // Two steps, three layers each: all run attention's backward, the lowest leaves out its first norm's.
            assertThat(fake.operations().stream().filter(AttentionBackward.class::isInstance)).hasSize(2 * 3);
            assertThat(fake.operations().stream().filter(LayerNormBackward.class::isInstance)).hasSize(2 * (1 + 2 + 2 + 1));
        }
    }

    @ParameterizedTest
    @ValueSource(booleans = {false, true})
    void theLowestLayersKeysHaveAGradientOnlyWhereAnAdapterReadsIt(boolean adapted) throws IOException {
        try (PeftFixture f = fixture("pre-norm", new FakeBackend());
                Arena arena = Arena.ofShared()) {
            Set<String> targets = adapted ? Set.of("k_proj") : Set.of("q_proj", "v_proj");
            LoraAdapter adapter = LoraAdapter.create(f.backend, arena, new LoraConfig(3, 6, 0, targets, false),
                    f.model.adaptableLayers(), f.model.peftPrefix(), 3);
            new Trainer(f.model, adapter, config().steps(2).build(), data(6), null).run();
            List<AttentionBackward> passes = ((FakeBackend) f.backend).operations().stream()
                    .filter(AttentionBackward.class::isInstance).map(AttentionBackward.class::cast).toList();
            int layers = f.model.config().numHiddenLayers();
            assertThat(passes).hasSize(2 * layers);
            for (int i = 0; i < passes.size(); i++) {
                boolean lowest = i % layers == layers - 1;
                assertThat(passes.get(i).dk() == null).as("no dk in pass %d", i).isEqualTo(lowest && !adapted);
            }
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"pre-norm", "post-norm"})
    void theKeyValueCacheGivesTheLogitsOfAWholePass(String name) throws IOException {
        try (PeftFixture f = fixture(name)) {
            int[] ids = f.data().get(0).ids();
            KeyValueCache cache = f.model.openCache(f.arena, f.adapter, 40);
            cache.feed(Arrays.copyOf(ids, 5));
            float[] last = null;
            for (int i = 5; i < ids.length; i++) {
                last = cache.feed(new int[]{ids[i]});
            }
            float[] all = f.expectedLogits();
            int vocab = f.model.vocabSize();
            float[] expected = Arrays.copyOfRange(all, (ids.length - 1) * vocab, ids.length * vocab);
            assertThat(PeftFixture.relativeError(last, expected)).isLessThan(1e-5);
        }
    }

    @Test
    void tokensAndPositionsThatTheModelDoesNotHaveAreRefused() throws IOException {
        try (PeftFixture f = fixture("pre-norm")) {
            int vocab = f.model.vocabSize();
            ModelPass pass = f.model.openPass(f.arena, f.adapter, new PassShape(64, 24, false));
            for (int unknown : new int[]{vocab, -1}) {
                int[] ids = {2, unknown, 4};
                assertThatThrownBy(() -> pass.forward(Batch.of(new Sample(ids, new boolean[3])), null))
                        .isInstanceOf(ModelException.class)
                        .hasMessageContaining("expected tokens in [0, " + vocab + "), found " + unknown + " at 1");
                assertThatThrownBy(() -> f.model.openCache(f.arena, f.adapter, 8).feed(ids))
                        .isInstanceOf(ModelException.class).hasMessageContaining("found " + unknown + " at 1");
            }
            int[] ids = {2, 3, 4};
            assertThatThrownBy(() -> pass.load(
                    new Batch(ids, ids, new int[]{0, 3}, new int[]{0}, new int[]{vocab}, 3, 3), null))
                    .hasMessageContaining("found " + vocab + " at 0");
            int far = f.model.maxPositions();
            assertThatThrownBy(() -> pass.load(
                    new Batch(ids, new int[]{0, 1, far}, new int[]{0, 3}, new int[0], new int[0], 3, 3), null))
                    .isInstanceOf(ModelException.class).hasMessageContaining("found one of " + (far + 1));
        }
    }

    @Test
    void generationAtTemperatureZeroIsGreedyAndSamplingFollowsTheSeed() throws IOException {
        try (PeftFixture f = fixture("pre-norm")) {
            Generator generator = new Generator(f.model, f.adapter, -1);
            int[] prompt = {2, 10, 11};
            int[] greedy = generator.generate(prompt, 8, 0, 1, 1);
            assertThat(greedy).hasSize(8).isEqualTo(generator.generate(prompt, 8, 0, 1, 99));
            assertThat(generator.generate(prompt, 8, 1e-6, 1, 5)).isEqualTo(greedy);
            int[] drawn = generator.generate(prompt, 20, 2, 0.95, 5);
            assertThat(generator.generate(prompt, 20, 2, 0.95, 5)).isEqualTo(drawn);
            assertThat(generator.generate(prompt, 20, 2, 0.95, 6)).isNotEqualTo(drawn);
            assertThatThrownBy(() -> generator.generate(new int[41], 1, 0, 1, 1))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("expected a prompt of at most 40 tokens, the model's positions, found 41");
        }
    }

    @Test
    void aNonFiniteGradientStopsTheRunNamesTheStepAndKeepsTheCheckpoint(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            LoraAdapter adapter = adapter(f, arena, 0);
            Trainer trainer = new Trainer(f.model, adapter, config().saveEvery(2).output(dir).build(), data(12), null);
            trainer.listener(m -> {
                if (m.step() == 3) {
                    float[] broken = adapter.parametersToHost();
                    broken[0] = Float.NaN;
                    adapter.setParameters(broken);
                }
            });
            assertThatThrownBy(trainer::run).isInstanceOf(TrainingException.class).hasMessageContaining("step 4");
            assertThat(dir.resolve("checkpoint-2/state.json")).exists();
            assertThat(dir.resolve("adapter_model.safetensors")).doesNotExist();
        }
    }

    private static void deleteAdapter(Path dir) throws IOException {
        Files.delete(dir.resolve("adapter_model.safetensors"));
        Files.delete(dir.resolve("adapter_config.json"));
    }

    @Test
    void aSecondRunOnTheSameOutputIsRefusedUntilTheFirstEnds(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            TrainConfig config = config().output(dir).build();
            Trainer first = new Trainer(f.model, adapter(f, arena, 0), config, data(12), null);
            Trainer second = new Trainer(f.model, adapter(f, arena, 0), config, data(12), null);
            List<Integer> refused = new ArrayList<>();
            first.listener(m -> {
                assertThatThrownBy(second::run).isInstanceOf(UncheckedIOException.class)
                        .hasMessage(dir + ": expected a folder that no other run writes to, found one that holds it");
                refused.add(m.step());
            }).run();
            assertThat(refused).hasSize(6);
            deleteAdapter(dir);
            assertThat(second.run()).isNotNull();
            deleteAdapter(dir);
            try (RunLock held = RunLock.acquire(dir)) {
                assertThatThrownBy(second::run).isInstanceOf(UncheckedIOException.class);
                assertThat(second.run(held)).isNotNull();
                assertThatThrownBy(second::run).as("it goes on holding").isInstanceOf(UncheckedIOException.class);
                Trainer elsewhere = new Trainer(f.model, adapter(f, arena, 0), config().output(dir.resolve("b")).build(),
                        data(12), null);
                assertThatThrownBy(() -> elsewhere.run(held)).isInstanceOf(IllegalArgumentException.class)
                        .hasMessage("expected to hold the output " + dir.resolve("b") + ", found " + dir);
            }
        }
    }

    @Test
    void anAdapterNamesTheModelsFolderAsItsBaseUnlessToldAnother(@TempDir Path dir) throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            train(f, adapter(f, arena, 0), config().output(dir.resolve("a")).build(), -1);
            train(f, adapter(f, arena, 0), config().output(dir.resolve("b")).baseModel("facebook/opt-125m").build(), 3);
            try (PeftAdapter own = PeftAdapter.read(dir.resolve("a"));
                    PeftAdapter told = PeftAdapter.read(dir.resolve("b/checkpoint-3"))) {
                assertThat(own.baseModel()).isEqualTo(PeftFixture.COMMITTED.resolve("pre-norm").toString());
                assertThat(told.baseModel()).isEqualTo("facebook/opt-125m");
            }
        }
    }

    @Test
    void whatWouldDoNothingIsRefused() throws IOException {
        assertThatThrownBy(() -> config().saveEvery(2).build()).isInstanceOf(IllegalArgumentException.class)
                .hasMessage("expected an output for checkpoints every 2 steps, found none");
        assertThatThrownBy(() -> config().resume(true).build()).isInstanceOf(IllegalArgumentException.class)
                .hasMessage("expected an output to resume, found none");
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            assertThatThrownBy(
                    () -> new Trainer(f.model, adapter(f, arena, 0), config().evalEvery(2).build(), data(12), null))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("expected evaluation data for evaluations every 2 steps, found none");
        }
    }

    @Test
    void aTrainerRunsTheSameRunAgain() throws IOException {
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            LoraAdapter adapter = adapter(f, arena, 0.1);
            float[] initial = adapter.parametersToHost();
            List<Double> losses = new ArrayList<>();
            Trainer trainer = new Trainer(f.model, adapter, config().build(), data(12), null)
                    .listener(m -> losses.add(m.loss()));
            trainer.run();
            adapter.setParameters(initial);
            trainer.run();
            assertThat(losses.subList(6, 12)).isEqualTo(losses.subList(0, 6));
        }
    }

    @Test
    void samplesWithoutTargetsEndNoRun() throws IOException {
        List<Sample> samples = new ArrayList<>(List.of(new Sample(new int[0], new boolean[0])));
        for (int i = 0; i < 12; i++) {
            samples.add(new Sample(new int[]{2, 5, 6 + i}, new boolean[3]));
        }
        samples.add(data(1).get(0));
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            Trainer trainer = new Trainer(f.model, adapter(f, arena, 0), config().batchSize(1).shuffle(false).build(),
                    Dataset.of(samples), null);
            assertThat(trainer.run().step()).isEqualTo(6);
        }
    }

    @Test
    void whatCannotBeComputedIsRefusedBeforeTheFirstStep() throws IOException {
        Dataset longer = Dataset.of(List.of(new Sample(new int[30], new boolean[30])));
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            LoraAdapter adapter = adapter(f, arena, 0);
            assertThatThrownBy(() -> new Trainer(f.model, adapter, config().build(), data(12), longer))
                    .isInstanceOf(DataException.class).hasMessageContaining("expected at most 24 tokens, found 30");
            Dataset foreign = Dataset.of(List.of(data(1).get(0), new Sample(new int[]{2, 99}, new boolean[]{false, true})));
            assertThatThrownBy(() -> new Trainer(f.model, adapter, config().build(), foreign, null))
                    .isInstanceOf(DataException.class).hasMessageContaining("sample 1: expected tokens in [0, ")
                    .hasMessageContaining("), found 99");
        }
    }

    @Test
    void aRunIsCancelledWithinAnEvaluation(@TempDir Path dir) throws IOException {
        Dataset held = data(200);
        AtomicBoolean evaluates = new AtomicBoolean();
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            Trainer[] trainer = new Trainer[1];
            Dataset cancelling = new Dataset() {
                @Override
                public int size() {
                    return held.size();
                }

                @Override
                public Sample get(int index) {
                    if (evaluates.get()) {
                        trainer[0].cancel();
                    }
                    return held.get(index);
                }

                @Override
                public String describe(int index) {
                    return held.describe(index);
                }
            };
            trainer[0] = new Trainer(f.model, adapter(f, arena, 0), config().evalEvery(2).output(dir).build(), data(12),
                    cancelling);
            List<Integer> evaluated = new ArrayList<>();
            trainer[0].listener(new StepListener() {
                @Override
                public void onStep(StepMetrics metrics) {
                    evaluates.set(metrics.step() == 2);
                }

                @Override
                public void onEval(int step, double loss) {
                    evaluated.add(step);
                }
            });
            trainer[0].run();
            assertThat(trainer[0].stepsDone()).isEqualTo(2);
            assertThat(evaluated).isEmpty();
            assertThat(dir.resolve("checkpoint-2/state.json")).exists();
        }
    }

    @Test
    void epochsEndWithTheirLastBatch() throws IOException {
        Dataset data = data(5000);
        TrainConfig config = config().steps(0).epochs(4).batchSize(1).build();
        Batches batches = new Batches(data, 1, 24, true, true, config.seed());
        int steps = 0;
        while (batches.epoch() < 4) {
            batches.next();
            steps++;
        }
        try (PeftFixture f = fixture("pre-norm"); Arena arena = Arena.ofShared()) {
            assertThat(new Trainer(f.model, adapter(f, arena, 0), config, data, null).totalSteps()).isEqualTo(steps - 1);
            TrainConfig endless = config().steps(0).epochs(Integer.MAX_VALUE).build();
            assertThatThrownBy(() -> new Trainer(f.model, adapter(f, arena, 0), endless, data(40), null))
                    .hasMessage("expected at most 2147483647 steps, found more in 2147483647 epochs");
        }
    }

    @Test
    void aPlanThatDoesNotFitIsRefusedWithNumbers() {
        MemoryPlan plan = new MemoryPlan();
        plan.add(MemoryPlan.Kind.ACTIVATIONS, "x", 3 << 20);
        assertThatThrownBy(() -> plan.requireFits(2 << 20))
                .isInstanceOf(ModelException.class).hasMessage(
                        "not enough memory: expected 3.0 MiB to be free, found 2.0 MiB (of 3.0 MiB: activations 3.0 MiB); "
                                + "a smaller batch size or sequence length lowers the activations");
        plan.add(MemoryPlan.Kind.HOST, "layers.0 activations", 2 << 20);
        Backend device = new FakeBackend() {
            @Override
            public Device device() {
                return Device.cuda(0);
            }

            @Override
            public OptionalLong freeBytes() {
                return OptionalLong.of(3 << 20);
            }

            @Override
            public OptionalLong hostFreeBytes() {
                return OptionalLong.of(1 << 20);
            }
        };
        assertThatThrownBy(() -> plan.requireFits(device))
                .isInstanceOf(ModelException.class).hasMessage(
                        "not enough memory on the host: expected 2.0 MiB to be free, found 1.0 MiB (of 5.0 MiB: activations "
                                + "3.0 MiB, copies on the host 2.0 MiB); fewer offloaded layers keep more of the activations on "
                                + "the device");
    }

    @Test
    void schedulesAreThoseOfTransformers() {
        assertThat(Schedule.LINEAR.factor(1, 4, 20)).isEqualTo(0.25);
        assertThat(Schedule.LINEAR.factor(12, 4, 20)).isEqualTo(0.5);
        assertThat(Schedule.COSINE.factor(12, 4, 20)).isCloseTo(0.5, org.assertj.core.data.Offset.offset(1e-12));
        assertThat(Schedule.CONSTANT.factor(19, 4, 20)).isEqualTo(1);
    }
}
