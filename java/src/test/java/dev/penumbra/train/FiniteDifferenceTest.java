package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.Opt;
import dev.penumbra.model.PassShape;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.model.ReluMask;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.UnaryOperator;
import java.util.stream.Stream;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * The hand-derived gradient of a whole model against central differences of its loss, along random directions in all LoRA
 * parameters and in those of each target alone.
 *
 * <p>A difference says nothing where a neuron crosses ReLU's kink on the way: the step is halved until no bit of any ReLU
 * mask changes between both ends and half of it gives nearly the same slope; a direction in which the smallest step still
 * does not is left out and counted. A model that leaves too few directions is drawn again, and counted. The loss
 * is taken from the logits in double, so that its own rounding does not decide.
 */
class FiniteDifferenceTest {

    private static final int DIRECTIONS = 12;
    /** Lengths of a step, all parameters together, which are about 0.2 each. */
    private static final double LARGEST_STEP = 0.08;
    private static final double SMALLEST_STEP = 0.00125;
    /** Of the directions of one target. */
    private static final double MOST_SKIPPED = 0.5;
    private static final int MOST_REDRAWN = 3;
    /** Of the directional derivative's root mean square: how far the slopes of a step and of its half may differ. */
    private static final double MOST_CURVED = 0.02;
    /** Of the directional derivative's root mean square, |g| / sqrt(n). Float32 makes a tenth of it. */
    private static final double TOLERANCE = 1e-2;
    private static final String ALL = "all";

    @TempDir
    Path folder;

    static Stream<Arguments> models() {
        return Stream.of(true, false).flatMap(preNorm -> Stream.concat(
                Stream.of(1L, 2L, 3L).map(seed -> Arguments.of(preNorm, seed)),
                Stream.of(Arguments.of(preNorm, ThreadLocalRandom.current().nextLong(1_000, 1L << 40)))));
    }

    @ParameterizedTest(name = "pre-norm {0}, seed {1}")
    @MethodSource("models")
    void theGradientIsTheSlopeOfTheLoss(boolean preNorm, long seed) throws IOException {
        try (Drawn d = draw(preNorm, seed)) {
            Map<String, Found> found = d.errors(UnaryOperator.identity());
            System.out.println(d + ": " + found);
            found.forEach((target, f) -> assertThat(f.worst).as(d + ": " + target).isLessThan(TOLERANCE));
        }
    }

    @ParameterizedTest(name = "pre-norm {0}, seed {1}")
    @MethodSource("models")
    void aGradientWithAWrongFactorIsSeen(boolean preNorm, long seed) throws IOException {
        try (Drawn d = draw(preNorm, seed)) {
            for (String wrong : LoraConfig.OPT_TARGETS) {
                Map<String, Found> found = d.errors(gradient -> d.scaled(gradient, wrong, 1.05f));
                assertThat(found.get(wrong).worst).as(d + ": " + wrong + ", its gradient times 1.05")
                        .isGreaterThan(TOLERANCE);
                found.forEach((target, f) -> {
                    if (!target.equals(wrong) && !target.equals(ALL)) {
                        assertThat(f.worst).as(d + ": " + target + ", beside a wrong " + wrong).isLessThan(TOLERANCE);
                    }
                });
            }
        }
    }

    private Drawn draw(boolean preNorm, long seed) throws IOException {
        for (int redrawn = 0; redrawn <= MOST_REDRAWN; redrawn++) {
            Drawn drawn = new Drawn(preNorm, seed + 1_000_003L * redrawn, redrawn);
            if (drawn.errors(UnaryOperator.identity()).values().stream()
                    .allMatch(found -> found.skipped <= MOST_SKIPPED * DIRECTIONS)) {
                return drawn;
            }
            drawn.close();
        }
        throw new AssertionError("seed " + seed + ", pre-norm " + preNorm + ": expected a model with enough directions that"
                + " have a slope, found none in " + (MOST_REDRAWN + 1));
    }

    /**
     * @param worst the largest difference between the slope and the gradient along a direction, as a part of |g| / sqrt(n)
     * @param skipped directions that were left out
     */
    private record Found(double worst, int skipped) {
        @Override
        public String toString() {
            return String.format("%.1e (%d of %d left out)", worst, skipped, DIRECTIONS);
        }
    }

    /** A small model with an adapter on everything whose B is not zero, and samples. */
    private final class Drawn implements AutoCloseable {
        final long seed;
        final int redrawn;
        final RandomOpt sizes;
        final Arena arena = Arena.ofShared();
        final Backend backend = Backends.open(Device.CPU, 1, true);
        final Opt model;
        final LoraAdapter adapter;
        final ModelPass pass;
        final Batch batch;
        final Tensor logits;
        final float[] parameters;
        final float[] gradient;
        /** By target: slopes along directions, and the directions; a slope is missing where every step crosses a kink. */
        final Map<String, List<Slope>> slopes = new TreeMap<>();

        private record Slope(float[] direction, OptionalDouble value) {
        }

        Drawn(boolean preNorm, long seed, int redrawn) throws IOException {
            this.seed = seed;
            this.redrawn = redrawn;
            Random random = new Random(seed);
            int heads = random.nextInt(1, 4);
            int hidden = heads * random.nextInt(Math.ceilDiv(8, heads), 11);
            // Few neurons and tokens: any neuron of any token may cross its kink.
            sizes = new RandomOpt(hidden, heads, random.nextInt(5, 14), random.nextInt(1, 3), random.nextInt(12, 40), 16,
                    random.nextBoolean() ? hidden : random.nextInt(4, 20), preNorm, random.nextInt(4) == 0);
            sizes.write(folder, random);
            try (ModelFolder files = ModelFolder.open(folder)) {
                model = Opt.load(backend, arena, files, DType.F32);
            }
            LoraConfig config = new LoraConfig(random.nextInt(1, 4), random.nextInt(2, 5), 0,
                    Set.copyOf(LoraConfig.OPT_TARGETS), false);
            adapter = LoraAdapter.create(backend, arena, config, model.adaptableLayers(), model.peftPrefix(), seed);
            parameters = direction(random, LoraConfig.OPT_TARGETS);
            double scale = 0.2 * Math.sqrt(adapter.parameterCount());
            for (int i = 0; i < parameters.length; i++) {
                parameters[i] *= (float) scale;
            }
            batch = new Batches(samples(random), 1, 16, true, false, 0).next();
            pass = model.openPass(arena, adapter, new PassShape(16, 16, true, true));
            logits = backend.allocate(arena, DType.F32, Shape.of(batch.ids().length, sizes.vocab()));
            gradient = gradient();
            measure(ALL, LoraConfig.OPT_TARGETS, random);
            LoraConfig.OPT_TARGETS.forEach(target -> measure(target, List.of(target), random));
        }

        private Dataset samples(Random random) {
            List<Sample> samples = new ArrayList<>();
            for (int length : new int[]{random.nextInt(4, 9), random.nextInt(3, 7)}) {
                boolean[] supervised = new boolean[length];
                Arrays.fill(supervised, 1, length, true);
                samples.add(new Sample(random.ints(length, 0, sizes.vocab()).toArray(), supervised));
            }
            return Dataset.of(samples);
        }

        /** Of length 1, within the parameters of some targets. */
        private float[] direction(Random random, List<String> targets) {
            double[] values = new double[Math.toIntExact(adapter.parameters().shape().size())];
            for (Site site : adapter.sites()) {
                if (targets.contains(site.layer().kind())) {
                    fill(values, site.offsetA(), (long) site.r() * site.layer().in(), random);
                    fill(values, site.offsetB(), (long) site.r() * site.layer().out(), random);
                }
            }
            double length = Math.sqrt(Arrays.stream(values).map(v -> v * v).sum());
            float[] direction = new float[values.length];
            for (int i = 0; i < values.length; i++) {
                direction[i] = (float) (values[i] / length);
            }
            return direction;
        }

        private static void fill(double[] values, long from, long count, Random random) {
            for (int i = 0; i < count; i++) {
                values[Math.toIntExact(from) + i] = random.nextGaussian();
            }
        }

        private void measure(String name, List<String> targets, Random random) {
            List<Slope> measured = new ArrayList<>();
            double usual = usualSlope(name);
            for (int i = 0; i < DIRECTIONS; i++) {
                float[] direction = direction(random, targets);
                measured.add(new Slope(direction, slope(direction, usual)));
            }
            slopes.put(name, measured);
        }

        /** By two central differences, so that the third derivative does not count either. */
        private OptionalDouble slope(float[] direction, double usual) {
            for (double step = LARGEST_STEP; step > 0.9 * SMALLEST_STEP; step /= 2) {
                Point right = at(direction, step);
                Point left = at(direction, -step);
                if (right.masks.equals(left.masks)) {
                    double wide = (right.loss - left.loss) / (2 * step);
                    double narrow = (at(direction, step / 2).loss - at(direction, -step / 2).loss) / step;
                    if (Math.abs(narrow - wide) < MOST_CURVED * usual) {
                        return OptionalDouble.of((4 * narrow - wide) / 3);
                    }
                }
            }
            return OptionalDouble.empty();
        }

        private record Point(double loss, List<List<Byte>> masks) {
        }

        private Point at(float[] direction, double step) {
            float[] moved = parameters.clone();
            for (int i = 0; i < moved.length; i++) {
                moved[i] += (float) (step * direction[i]);
            }
            adapter.setParameters(moved);
            pass.forward(batch, null);
            pass.logits(logits);
            List<List<Byte>> masks = new ArrayList<>();
            for (ReluMask mask : pass.reluMasks()) {
                masks.add(bytes(mask));
            }
            return new Point(loss(host(logits).toFloats()), masks);
        }

        private List<Byte> bytes(ReluMask mask) {
            List<Byte> bytes = new ArrayList<>();
            for (byte b : host(mask.bits()).segment().toArray(ValueLayout.JAVA_BYTE)) {
                bytes.add(b);
            }
            // Rows after the batch's are padding.
            return bytes.subList(0, batch.ids().length * Math.ceilDiv(mask.neurons(), 8));
        }

        private double loss(float[] z) {
            double sum = 0;
            for (int i = 0; i < batch.rows().length; i++) {
                int row = batch.rows()[i] * sizes.vocab();
                double total = 0;
                for (int v = 0; v < sizes.vocab(); v++) {
                    total += Math.exp(z[row + v]);
                }
                sum += Math.log(total) - z[row + batch.targets()[i]];
            }
            return sum;
        }

        private float[] gradient() {
            Tensor loss = backend.allocate(arena, DType.F32, Shape.of(1));
            Tensor scale = backend.allocate(arena, DType.F32, Shape.of(1));
            Tensor grad = backend.allocate(arena, DType.F32, adapter.parameters().shape());
            Scalars.write(backend, scale, 1);
            adapter.setParameters(parameters);
            pass.forward(batch, null);
            pass.addLossAndGradients(loss, scale, grad);
            return host(grad).toFloats();
        }

        private Tensor host(Tensor device) {
            Tensor host = Tensor.allocate(arena, device.dtype(), device.shape());
            backend.download(device, host);
            return host;
        }

        float[] scaled(float[] given, String target, float factor) {
            float[] scaled = given.clone();
            for (Site site : adapter.sites()) {
                if (site.layer().kind().equals(target)) {
                    scale(scaled, site.offsetA(), (long) site.r() * site.layer().in(), factor);
                    scale(scaled, site.offsetB(), (long) site.r() * site.layer().out(), factor);
                }
            }
            return scaled;
        }

        private static void scale(float[] values, long from, long count, float factor) {
            for (int i = Math.toIntExact(from); i < from + count; i++) {
                values[i] *= factor;
            }
        }

        Map<String, Found> errors(UnaryOperator<float[]> change) {
            float[] judged = change.apply(gradient);
            Map<String, Found> errors = new TreeMap<>();
            slopes.forEach((target, measured) -> {
                double worst = 0;
                int skipped = 0;
                double usual = usualSlope(target);
                for (Slope slope : measured) {
                    if (slope.value.isEmpty()) {
                        skipped++;
                    } else {
                        worst = Math.max(worst, Math.abs(dot(judged, slope.direction) - slope.value.getAsDouble()) / usual);
                    }
                }
                errors.put(target, new Found(worst, skipped));
            });
            return errors;
        }

        /** |g| / sqrt(n): the root mean square of the slopes along all directions. */
        private double usualSlope(String target) {
            double squares = 0;
            long count = 0;
            for (Site site : adapter.sites()) {
                if (target.equals(ALL) || site.layer().kind().equals(target)) {
                    squares += squares(site.offsetA(), (long) site.r() * site.layer().in())
                            + squares(site.offsetB(), (long) site.r() * site.layer().out());
                    count += (long) site.r() * (site.layer().in() + site.layer().out());
                }
            }
            return Math.sqrt(squares / count);
        }

        private double squares(long from, long count) {
            double sum = 0;
            for (int i = Math.toIntExact(from); i < from + count; i++) {
                sum += (double) gradient[i] * gradient[i];
            }
            return sum;
        }

        private static double dot(float[] a, float[] b) {
            double sum = 0;
            for (int i = 0; i < a.length; i++) {
                sum += (double) a[i] * b[i];
            }
            return sum;
        }

        @Override
        public void close() {
            arena.close();
            backend.close();
        }

        @Override
        public String toString() {
            return "seed " + seed + " (drawn again " + redrawn + " times), " + sizes + ", " + adapter.config();
        }
    }
}
