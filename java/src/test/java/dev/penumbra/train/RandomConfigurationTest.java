package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.Opt;
import dev.penumbra.model.PassShape;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.LongStream;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Whole models of sizes drawn at random, some anew in every run: a name tells the seed that repeats its test. */
class RandomConfigurationTest {

    private static final int KNOWN = 8;
    private static final int FRESH = 4;

    @TempDir
    Path folder;

    static LongStream seeds() {
        return LongStream.concat(LongStream.rangeClosed(1, KNOWN),
                ThreadLocalRandom.current().longs(FRESH, 1_000, 1L << 40));
    }

    @ParameterizedTest(name = "seed {0}")
    @MethodSource("seeds")
    void packedAndUnpackedGiveEqualLossAndGradients(long seed) throws IOException {
        try (Drawn d = new Drawn(seed)) {
            double packed = d.loss(d.batch(true));
            double padded = d.loss(d.batch(false));
            assertThat(Math.abs(padded / packed - 1)).as(d + ": loss").isLessThan(1e-6);
            assertThat(PeftFixture.relativeError(d.gradient(d.batch(false)), d.gradient(d.batch(true))))
                    .as(d + ": gradients").isLessThan(1e-5);
        }
    }

    /** A model, an adapter whose B is not zero, and samples. */
    private final class Drawn implements AutoCloseable {
        final long seed;
        final Random random;
        final RandomOpt sizes;
        final LoraConfig config;
        final Arena arena = Arena.ofShared();
        final Backend backend;
        final Opt model;
        final LoraAdapter adapter;
        final Dataset data;
        final ModelPass pass;
        final Tensor loss;
        final Tensor scale;

        Drawn(long seed) throws IOException {
            this.seed = seed;
            random = new Random(seed);
            sizes = RandomOpt.draw(random);
            sizes.write(folder, random);
            backend = Backends.open(Device.CPU, 1 + random.nextInt(3), true);
            try (ModelFolder files = ModelFolder.open(folder)) {
                model = Opt.load(backend, arena, files, DType.F32);
            }
            List<String> targets = new ArrayList<>(LoraConfig.OPT_TARGETS);
            Collections.shuffle(targets, random);
            config = new LoraConfig(1 + random.nextInt(6), 1 + random.nextInt(16), 0,
                    Set.copyOf(targets.subList(0, 1 + random.nextInt(targets.size()))), random.nextBoolean());
            adapter = LoraAdapter.create(backend, arena, config, model.adaptableLayers(), model.peftPrefix(), seed);
            adapter.setParameters(gaussian(Math.toIntExact(adapter.parameters().shape().size()), 0.1));
            data = samples();
            int tokens = data.size() * sizes.positions();
            pass = model.openPass(arena, adapter, new PassShape(tokens, sizes.positions(), true));
            loss = backend.allocate(arena, DType.F32, Shape.of(1));
            scale = backend.allocate(arena, DType.F32, Shape.of(1));
            Scalars.write(backend, scale, 1);
        }

        private Dataset samples() {
            List<Sample> samples = new ArrayList<>();
            for (int s = 1 + random.nextInt(5); s >= 0; s--) {
                int[] ids = random.ints(random.nextInt(s == 0 ? 12 : 2, sizes.positions() + 1), 0, sizes.vocab()).toArray();
                boolean[] supervised = new boolean[ids.length];
                Arrays.fill(supervised, random.nextInt(1, Math.max(2, ids.length / 2)), ids.length, true);
                samples.add(new Sample(ids, supervised));
            }
            return Dataset.of(samples);
        }

        private float[] gaussian(int count, double deviation) {
            float[] values = new float[count];
            for (int i = 0; i < count; i++) {
                values[i] = (float) (deviation * random.nextGaussian());
            }
            return values;
        }

        /** All samples, packed into rows or padded to the longest. */
        Batch batch(boolean pack) {
            return new Batches(data, data.size(), sizes.positions(), pack, false, 0).next();
        }

        /** The sum over all supervised tokens. */
        double loss(Batch batch) {
            backend.run(new Fill(0, loss));
            pass.forward(batch, null);
            pass.addLoss(loss);
            return Scalars.read(backend, loss);
        }

        float[] gradient(Batch batch) {
            Tensor grad = backend.allocate(arena, DType.F32, adapter.parameters().shape());
            pass.forward(batch, null);
            pass.addLossAndGradients(loss, scale, grad);
            Tensor host = Tensor.allocate(arena, DType.F32, grad.shape());
            backend.download(grad, host);
            return host.toFloats();
        }

        @Override
        public void close() {
            arena.close();
            backend.close();
        }

        @Override
        public String toString() {
            return "seed " + seed + ", " + sizes + ", " + config;
        }
    }
}
