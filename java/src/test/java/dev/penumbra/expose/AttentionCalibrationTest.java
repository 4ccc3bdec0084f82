package dev.penumbra.expose;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.io.SafetensorsWriter;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.AttentionHeadMap;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.PooledAttention;
import dev.penumbra.sparse.BlockPattern;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A small random model, and samples of a few blocks each among short ones. */
class AttentionCalibrationTest {

    private static final int HIDDEN = 32;
    private static final int HEADS = 2;
    private static final int POSITIONS = 512;
    private static final int VOCABULARY = 40;
    private static final int BLOCK = 64;
    private static final int WIDTH = POSITIONS / BLOCK;
    private static final RandomOpt SIZES = new RandomOpt(HIDDEN, HEADS, 128, 2, VOCABULARY, POSITIONS, HIDDEN, true, false);
    private static final CalibrationConfig CONFIG = config(new CalibrationConfig.Attention(BLOCK, 32, 8, 0.6));

    @TempDir
    static Path shared;

    private static Path model;
    private static Path folder;
    private static Calibration calibration;
    private static final List<String> PROGRESS = new ArrayList<>();

    private static CalibrationConfig config(CalibrationConfig.Attention attention) {
        return new CalibrationConfig(8, 4, 2, POSITIONS, 32, 256, 16, 8, 0.99, 0.5, 4, 0.02, 0.1, 7, attention);
    }

    @BeforeAll
    static void calibrate() throws IOException {
        model = shared.resolve("model");
        SIZES.write(model, new Random(5));
        folder = shared.resolve("calibration");
        calibration = calibrated(model, text(60, 400), CONFIG, folder);
    }

    private static Calibration calibrated(Path of, Dataset text, CalibrationConfig config, Path output) throws IOException {
        try (Penumbra penumbra = Penumbra.load(of, Device.CPU, 1, DType.F32)) {
            return Calibrator.calibrate(penumbra.model(), penumbra.folder(), text, config, output, PROGRESS::add);
        }
    }

    /** Every third sample is of {@code longest} tokens or somewhat fewer; in stretches they are about one topic. */
    private static Dataset text(int samples, int longest) {
        Random random = new Random(3);
        List<Sample> list = new ArrayList<>();
        for (int i = 0; i < samples; i++) {
            int[] ids = new int[i % 3 == 0 ? longest - random.nextInt(longest / 4) : random.nextInt(20, 60)];
            for (int t = 0; t < ids.length;) {
                int topic = random.nextInt(4) * 10;
                for (int end = Math.min(ids.length, t + random.nextInt(40, 90)); t < end; t++) {
                    ids[t] = topic + random.nextInt(10);
                }
            }
            boolean[] supervised = new boolean[ids.length];
            Arrays.fill(supervised, 1, ids.length, true);
            list.add(new Sample(ids, supervised));
        }
        return Dataset.of(list);
    }

    private static AttentionCalibration attention() {
        return calibration.attention().orElseThrow();
    }

    @Test
    void whatIsFoundOutIsOfTheSizeOfTheModel() {
        AttentionCalibration attention = attention();
        assertThat(attention.layers()).isEqualTo(2);
        assertThat(attention.heads()).isEqualTo(HEADS);
        assertThat(attention.blockSize()).isEqualTo(BLOCK);
        assertThat(attention.width()).isEqualTo(WIDTH);
        assertThat(attention.identity()).isEqualTo(calibration.identity());
        assertThat(attention.figures().samples()).isBetween(8, 16);
        assertThat(attention.figures().blocks()).isBetween(5, 7);
        AttentionPredictor predictor = attention.predictor(1).orElseThrow();
        assertThat(predictor.width()).isEqualTo(WIDTH);
        assertThat(predictor.rank()).isEqualTo(8);
        assertThat(calibration.manifest().version()).isEqualTo(2);
    }

    @Test
    void tablesTellPartsOfRows() {
        for (int layer = 0; layer < 2; layer++) {
            float[] table = attention().table(layer);
            float[] highest = attention().highest(layer);
            for (int h = 0; h < HEADS; h++) {
                for (int i = 0; i < WIDTH; i++) {
                    float sum = 0;
                    for (int j = 0; j < WIDTH; j++) {
                        int at = (h * WIDTH + i) * WIDTH + j;
                        sum += table[at];
                        assertThat(table[at]).as("layer %d, head %d, block %d, %d", layer, h, i, j)
                                .isBetween(0f, highest[at] + 1e-5f);
                        assertThat(j <= i || table[at] == 0).isTrue();
                    }
                    if (i < attention().figures().blocks()) {
                        assertThat(sum).as("layer %d, head %d, block %d", layer, h, i).isCloseTo(1, within(1e-3f));
                    } else {
                        assertThat(sum).as("layer %d, head %d, block %d, beyond all samples", layer, h, i).isPositive();
                    }
                }
            }
        }
    }

    @Test
    void massesAreThoseOfTheScoresThemselves() throws IOException {
        // One sample alone and the scores by hand, in f64, for the first layer, whose input is known from the file.
        try (Penumbra penumbra = Penumbra.load(model, Device.CPU, 1, DType.F32);
                Arena arena = Arena.ofShared();
                AttentionCollector collector = new AttentionCollector(penumbra.model().backend(), 2, BLOCK, 32, POSITIONS)) {
            Sample one = text(1, 300).get(0);
            float[][] seen = new float[2][];
            var pass = penumbra.model().openPass(arena, null, new PassShape(POSITIONS, POSITIONS, false),
                    PassOptions.observed(null, new dev.penumbra.model.AttentionObserver() {
                        @Override
                        public void afterAttention(int layer, Seen told) {
                            collector.afterAttention(layer, told);
                            if (layer == 0) {
                                seen[0] = host(penumbra.model().backend(), told.q());
                                seen[1] = host(penumbra.model().backend(), told.k());
                            }
                        }

                        @Override
                        public int poolRows() {
                            return 32;
                        }
                    }));
            Batch batch = Batch.of(one);
            pass.forward(batch, null);
            AttentionUse use = new AttentionUse(2);
            collector.add(0, batch, use);
            int n = Math.ceilDiv(one.length(), BLOCK);
            for (int h = 0; h < HEADS; h++) {
                double[] expected = byHand(seen[0], seen[1], h, one.length(), n);
                float[] found = use.mass(0, 0, h);
                for (int at = 0; at < found.length; at++) {
                    assertThat((double) found[at]).as("head %d, block %d", h, at).isCloseTo(expected[at], within(1e-3));
                }
            }
        }
    }

    private static float[] host(Backend backend, Tensor tensor) {
        // A strided view: row by row.
        int rows = Math.toIntExact(tensor.shape().dim(0));
        float[] all = new float[rows * HIDDEN];
        try (Arena arena = Arena.ofConfined()) {
            Tensor packed = backend.allocate(arena, DType.F32, tensor.shape());
            backend.run(new dev.penumbra.backend.op.Convert(tensor, packed));
            Tensor host = Tensor.allocate(arena, DType.F32, tensor.shape());
            backend.download(packed, host);
            System.arraycopy(host.toFloats(), 0, all, 0, all.length);
        }
        return all;
    }

    private static double[] byHand(float[] q, float[] k, int head, int length, int blocks) {
        int d = HIDDEN / HEADS;
        double[] mass = new double[blocks * blocks];
        for (int t = 0; t < length; t++) {
            double[] scores = new double[t + 1];
            double sum = 0;
            for (int u = 0; u <= t; u++) {
                for (int c = 0; c < d; c++) {
                    scores[u] += (double) q[t * HIDDEN + head * d + c] * k[u * HIDDEN + head * d + c];
                }
                scores[u] = Math.exp(scores[u] / Math.sqrt(d));
                sum += scores[u];
            }
            for (int u = 0; u <= t; u++) {
                mass[t / BLOCK * blocks + u / BLOCK] += scores[u] / sum;
            }
        }
        return mass;
    }

    @Test
    void figuresAreOrderedAsPoliciesAre() {
        for (Manifest.AttentionLayer layer : attention().figures().layers()) {
            for (Manifest.AttentionCoverage c : List.of(layer.plain(), layer.drifted())) {
                assertThat(c.chooses()).as("%s", c).isTrue();
                assertThat(c.oracle()).as("%s", c).isBetween(c.always(), 1.0 + 1e-6)
                        .isGreaterThanOrEqualTo(c.predicted() - 1e-6).isGreaterThanOrEqualTo(c.fixed() - 1e-6)
                        .isGreaterThanOrEqualTo(c.pool() - 1e-6).isGreaterThanOrEqualTo(c.longformer() - 1e-6)
                        .isGreaterThanOrEqualTo(c.bigBird() - 1e-6);
                assertThat(c.predicted()).as("%s", c).isGreaterThan(c.random());
                assertThat(c.shareOfOracle()).as("%s", c).isGreaterThan(0.9);
            }
            for (Manifest.AttentionHead head : layer.heads()) {
                assertThat(head.blocksFor().get("0.90")).isLessThanOrEqualTo(head.blocksFor().get("0.99"));
                assertThat(head.worst().get("0.95")).isGreaterThanOrEqualTo(head.blocksFor().get("0.95") - 1e-9);
                assertThat(head.layout()).isSubsetOf(attention().figures().patterns());
            }
        }
    }

    @Test
    void whatAHeadKeepsGrowsWithTheCoverage() {
        for (int layer = 0; layer < 2; layer++) {
            double[] previous = new double[HEADS];
            for (double coverage : new double[]{0.1, 0.5, 0.72, 0.9, 0.97, 0.99, 0.9995, 1}) {
                double[] kept = attention().keptAt(layer, coverage);
                assertThat(kept).hasSize(HEADS);
                for (int h = 0; h < HEADS; h++) {
                    assertThat(kept[h]).as("layer %d, head %d, coverage %.4f", layer, h, coverage)
                            .isBetween(previous[h], 1.0);
                }
                previous = kept;
            }
            assertThat(previous).as("everything").containsOnly(1.0);
        }
    }

    @Test
    void layoutsAreUnionsOfThePoolWithinTheBudget() {
        for (int layer = 0; layer < 2; layer++) {
            for (int h = 0; h < HEADS; h++) {
                BlockPattern layout = attention().layout(layer, h);
                assertThat(layout.count(WIDTH)).as("layer %d, head %d", layer, h)
                        .isBetween(2 * WIDTH - 1, AttentionChoice.most(WIDTH, 0.6));
                assertThat(layout).isEqualTo(attention().pool().union(attention().layoutEntries(layer, h)));
            }
        }
        assertThat(attention().pool().patterns()).extracting(BlockPattern::name).contains("sink-1", "local-2", "found-1");
    }

    /** The trainer's forward, its maps folded into the layer's weights, and the operation on the CPU are one function. */
    @ParameterizedTest
    @ValueSource(longs = {1, 2})
    void theFoldedPredictorIsTheTrainersForwardAndTheOperation(long seed) throws IOException {
        Random random = new Random(seed);
        int rank = 8;
        int headDim = HIDDEN / HEADS;
        int poolRows = 16;
        int[] lengths = {300, 70, 37, 129};
        List<AttentionHeadMap> maps = new ArrayList<>();
        for (int h = 0; h < HEADS; h++) {
            maps.add(new AttentionHeadMap(rank, headDim, values(random, rank * headDim, 0.25),
                    values(random, rank * headDim, 0.25), values(random, rank, 0.3), values(random, rank, 0.3),
                    values(random, WIDTH, 0.5)));
        }
        int[] borders = new int[lengths.length + 1];
        for (int s = 0; s < lengths.length; s++) {
            borders[s + 1] = borders[s] + lengths[s];
        }
        int tokens = borders[lengths.length] + 5;
        int pools = Math.ceilDiv(tokens, poolRows);
        float[] pooled = values(random, pools * HIDDEN, 1);
        try (Penumbra penumbra = Penumbra.load(model, Device.CPU, 1, DType.F32); Arena arena = Arena.ofShared()) {
            Backend backend = penumbra.model().backend();
            HeadProjections weights = HeadProjections.read(penumbra.model(), penumbra.folder(), 1);
            float[] qk = weights.of(backend, DType.F32, pooled);
            AttentionPredictor folded = weights.folded(maps, poolRows, BLOCK);
            long slots = AttentionBlocks.slots(tokens, lengths.length, BLOCK);
            float[] found = predicted(backend, arena, folded, pooled, borders, tokens, slots);
            for (int s = 0; s < lengths.length; s++) {
                AttentionUse.Shape shape = AttentionUse.Shape.of(0, borders[s], borders[s + 1], BLOCK, poolRows);
                int first = AttentionUse.Shape.firstPool(borders[s], poolRows);
                int n = shape.blocks();
                for (int h = 0; h < HEADS; h++) {
                    float[] q = new float[shape.blockOf().length * headDim];
                    float[] k = new float[q.length];
                    for (int g = 0; g < shape.blockOf().length; g++) {
                        System.arraycopy(qk, (first + g) * 2 * HIDDEN + h * headDim, q, g * headDim, headDim);
                        System.arraycopy(qk, (first + g) * 2 * HIDDEN + HIDDEN + h * headDim, k, g * headDim, headDim);
                    }
                    float[] expected = maps.get(h)
                            .masses(new PooledAttention(n, shape.blockOf(), q, k, new float[n * n]), poolRows);
                    for (int i = 0; i < n; i++) {
                        for (int j = 0; j <= i; j++) {
                            int slot = borders[s] / BLOCK + s + i;
                            // The folded maps are bf16 on the device.
                            assertThat(found[Math.toIntExact((h * slots + slot) * WIDTH + j)])
                                    .as("seed %d, sample of %d, head %d, block %d, %d", seed, lengths[s], h, i, j)
                                    .isCloseTo(expected[i * n + j], within(0.02f * BLOCK));
                        }
                    }
                }
            }
        }
    }

    private static float[] values(Random random, int count, double deviation) {
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) (deviation * random.nextGaussian());
        }
        return values;
    }

    private static float[] predicted(Backend backend, Arena arena, AttentionPredictor p, float[] pooled, int[] borders,
            int tokens, long slots) {
        Tensor rows = uploaded(backend, arena, Tensor.of(arena, pooled).reshape(pooled.length / HIDDEN, HIDDEN));
        Tensor wide = uploaded(backend, arena, Tensor.of(arena, p.a()).reshape(2, HEADS, p.rank(), HIDDEN));
        Tensor a = backend.allocate(arena, DType.BF16, wide.shape());
        backend.run(new dev.penumbra.backend.op.Convert(wide.reshape(2L * HEADS * p.rank(), HIDDEN),
                a.reshape(2L * HEADS * p.rank(), HIDDEN)));
        Tensor bias = uploaded(backend, arena, Tensor.of(arena, p.bias()).reshape(2, HEADS, p.rank()));
        Tensor distance = uploaded(backend, arena, Tensor.of(arena, p.distance()).reshape(HEADS, WIDTH));
        Tensor cu = uploaded(backend, arena, Tensor.of(arena, borders));
        Tensor mass = backend.allocate(arena, DType.F32, Shape.of(HEADS, slots, WIDTH));
        PredictAttention bare = new PredictAttention(rows, p.poolRows(), a, bias, distance, cu, tokens, POSITIONS, BLOCK,
                mass,
                null);
        long bytes = backend.workspaceBytes(bare);
        Tensor workspace = bytes == 0 ? null : backend.allocate(arena, DType.U8, Shape.of(bytes));
        backend.run(new PredictAttention(rows, p.poolRows(), a, bias, distance, cu, tokens, POSITIONS, BLOCK, mass,
                workspace));
        Tensor host = Tensor.allocate(arena, DType.F32, mass.shape());
        backend.download(mass, host);
        return host.toFloats();
    }

    private static Tensor uploaded(Backend backend, Arena arena, Tensor host) {
        Tensor device = backend.allocate(arena, host.dtype(), host.shape());
        backend.upload(host, device);
        return device;
    }

    @Test
    void whatIsWrittenIsRead() throws IOException {
        AttentionCalibration read;
        try (ModelFolder files = ModelFolder.open(model)) {
            read = Calibration.read(folder, files).attention().orElseThrow();
        }
        assertThat(read.figures()).isEqualTo(attention().figures());
        assertThat(read.pool()).isEqualTo(attention().pool());
        for (int layer = 0; layer < 2; layer++) {
            assertThat(read.table(layer)).isEqualTo(attention().table(layer));
            assertThat(read.predictor(layer).orElseThrow().a()).isEqualTo(attention().predictor(layer).orElseThrow().a());
            assertThat(read.predictor(layer).orElseThrow().distance())
                    .isEqualTo(attention().predictor(layer).orElseThrow().distance());
            assertThat(read.layoutEntries(layer, 1)).isEqualTo(attention().layoutEntries(layer, 1));
            assertThat(read.keptAt(layer, 0.93)).isEqualTo(attention().keptAt(layer, 0.93));
        }
    }

    @Test
    void withoutSamplesOfTwoBlocksThereIsNoAttentionPart() throws IOException {
        PROGRESS.clear();
        Calibration without = calibrated(model, text(90, 120), CONFIG, shared.resolve("short"));
        assertThat(without.attention()).isEmpty();
        assertThat(PROGRESS).contains("the sample text or what is held out of it has no sample of 128 tokens, two attention "
                + "blocks of 64: calibrating without attention");
        assertThat(Calibration.read(shared.resolve("short")).manifest().version()).isEqualTo(2);
        Calibration unasked = calibrated(model, text(40, 400), config(CalibrationConfig.Attention.NONE),
                shared.resolve("unasked"));
        assertThat(unasked.attention()).isEmpty();
    }

    @Test
    void aLayerWithoutANormBeforeItHasTablesAndNoPredictor() throws IOException {
        Path postNorm = shared.resolve("post-norm");
        new RandomOpt(HIDDEN, HEADS, 128, 2, VOCABULARY, POSITIONS, HIDDEN, false, false).write(postNorm, new Random(8));
        AttentionCalibration attention = calibrated(postNorm, text(40, 400), CONFIG, shared.resolve("post")).attention()
                .orElseThrow();
        assertThat(attention.predictor(0)).isEmpty();
        assertThat(attention.figures().layers().getFirst().plain().predicted()).isNull();
        assertThat(attention.predictor(1)).isPresent();
        assertThat(attention.table(0)[0]).isCloseTo(1, within(1e-5f));
    }

    @FunctionalInterface
    private interface Damage {
        void to(Map<String, Tensor> tensors, Map<String, String> metadata, Arena arena);
    }

    private static Path changed(String name, Damage damage) throws IOException {
        Path file = shared.resolve(name).resolve(Calibration.FILE);
        Files.createDirectories(file.getParent());
        try (SafetensorsFile good = SafetensorsFile.open(folder.resolve(Calibration.FILE));
                Arena arena = Arena.ofConfined()) {
            Map<String, Tensor> tensors = new HashMap<>();
            good.entries().keySet().forEach(tensor -> tensors.put(tensor, good.tensor(tensor)));
            Map<String, String> metadata = new HashMap<>(good.metadata());
            damage.to(tensors, metadata, arena);
            SafetensorsWriter.write(file, tensors, metadata);
        }
        return file;
    }

    @Test
    void aFileOfVersionOneIsRead() throws IOException {
        Path old = changed("old", (tensors, metadata, arena) -> {
            tensors.keySet().removeIf(name -> name.startsWith("attention."));
            metadata.computeIfPresent("penumbra.calibration", (key, text) -> {
                int at = text.indexOf(",\"attention\":");
                assertThat(at).isPositive();
                return text.substring(0, at).replace("\"version\":2", "\"version\":1") + "}";
            });
        });
        Calibration read = Calibration.read(old);
        assertThat(read.manifest().version()).isEqualTo(1);
        assertThat(read.attention()).isEmpty();
        assertThat(read.orders()).isEqualTo(calibration.orders());
    }

    @Test
    void aBrokenAttentionPartIsToldByNameAndReason() throws IOException {
        Map<String, Damage> damages = Map.of(
                "expected a tensor attention.layers.1.table, found none of that name",
                (tensors, metadata, arena) -> tensors.remove("attention.layers.1.table"),
                "expected 0 or, on and below the diagonal, 1, found 1 at [0, 1]",
                (tensors, metadata, arena) -> tensors.get("attention.pool").segment().set(ValueLayout.JAVA_BYTE, 1,
                        (byte) 1),
                "expected a pattern pool of version 1, found 7",
                (tensors, metadata, arena) -> metadata.computeIfPresent("penumbra.calibration",
                        (key, text) -> text.replace("\"poolVersion\":1", "\"poolVersion\":7")),
                "tensor attention.layers.0.layout: expected places in a pool of",
                (tensors, metadata, arena) -> tensors.put("attention.layers.0.layout",
                        Tensor.of(arena, 0, 1000).reshape(2, 1)),
                "tensor attention.layers.0.predictor.bias: expected F32[2, 2, 8], found F32[1]",
                (tensors, metadata, arena) -> tensors.put("attention.layers.0.predictor.bias", Tensor.of(arena, 1f)));
        int count = 0;
        for (Map.Entry<String, Damage> damage : damages.entrySet()) {
            Path file = changed("damaged" + count++, damage.getKey().contains("diagonal")
                    ? (tensors, metadata, arena) -> {
                        Tensor pool = tensors.get("attention.pool");
                        Tensor copy = Tensor.allocate(arena, DType.U8, pool.shape());
                        copy.segment().copyFrom(pool.segment());
                        tensors.put("attention.pool", copy);
                        damage.getValue().to(tensors, metadata, arena);
                    }
                    : damage.getValue());
            assertThatThrownBy(() -> Calibration.read(file)).as(damage.getKey()).isInstanceOf(CalibrationException.class)
                    .hasMessageContaining(file.toString()).hasMessageContaining(damage.getKey());
        }
    }

    @ParameterizedTest
    @ValueSource(strings = {"48, 16, 16, 0.3, blocks of 64 or 128", "64, 48, 16, 0.3, divide blocks of 64",
            "64, 32, 12, 0.3, multiple of 8", "64, 32, 72, 0.3, of 8 to 64", "64, 32, 16, 0, budget for attention above 0"})
    void wrongSettingsAreRefused(String values) {
        String[] v = values.split(", ", 5);
        assertThatThrownBy(() -> new CalibrationConfig.Attention(Integer.parseInt(v[0]), Integer.parseInt(v[1]),
                Integer.parseInt(v[2]), Double.parseDouble(v[3]))).isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining(v[4]);
    }
}
