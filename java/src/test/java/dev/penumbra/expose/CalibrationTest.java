package dev.penumbra.expose;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.data.Batch;
import dev.penumbra.data.DataException;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.io.SafetensorsWriter;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.PassShape;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.Matrix;
import dev.penumbra.predict.PredictorScores;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A small random model: in its first block of neurons, as stored, none ever fires. */
class CalibrationTest {

    private static final int NEURONS = 160;
    private static final int POSITIONS = 48;
    private static final int VOCABULARY = 40;
    private static final RandomOpt SIZES = new RandomOpt(24, 2, NEURONS, 2, VOCABULARY, POSITIONS, 24, true, false);
    private static final CalibrationConfig CONFIG = new CalibrationConfig(6, 3, 12, POSITIONS, 32, 256, 16, 8, 0.99, 0.4, 3,
            0.05,
            0.1, 7);

    @TempDir
    static Path shared;

    private static Path model;
    private static Path folder;
    private static Calibration calibration;

    @BeforeAll
    static void calibrate() throws IOException {
        model = shared.resolve("model");
        SIZES.write(model, new Random(5), neuron -> neuron < 32);
        folder = shared.resolve("calibration");
        try (Penumbra penumbra = Penumbra.load(model, Device.CPU, 1, DType.F32)) {
            calibration = Calibrator.calibrate(penumbra.model(), penumbra.folder(), text(120), CONFIG, folder, line -> {
            });
        }
    }

    private static Dataset text(int samples) {
        Random random = new Random(3);
        List<Sample> list = new ArrayList<>();
        for (int i = 0; i < samples; i++) {
            // Each sample is about some of the tokens.
            int topic = random.nextInt(4) * 10;
            int[] ids = random.ints(random.nextInt(30, POSITIONS), topic, topic + 10).toArray();
            boolean[] supervised = new boolean[ids.length];
            Arrays.fill(supervised, 1, ids.length, true);
            list.add(new Sample(ids, supervised));
        }
        return Dataset.of(list);
    }

    private static float[] logits(List<NeuronOrder> orders) throws IOException {
        int[] ids = new Random(9).ints(POSITIONS, 0, VOCABULARY).toArray();
        try (Penumbra penumbra = Penumbra.open(model, Device.CPU, 1, DType.F32, orders); Arena arena = Arena.ofShared()) {
            penumbra.model().load();
            ModelPass pass = penumbra.model().openPass(arena, null, new PassShape(POSITIONS, POSITIONS, false));
            pass.forward(Batch.of(new Sample(ids, new boolean[ids.length])), null);
            Tensor logits = penumbra.model().backend().allocate(arena, DType.F32, Shape.of(POSITIONS, VOCABULARY));
            pass.logits(logits);
            Tensor host = Tensor.allocate(arena, DType.F32, logits.shape());
            penumbra.model().backend().download(logits, host);
            return host.toFloats();
        }
    }

    @Test
    void theChosenOrderLeavesTheModelAsItIs() throws IOException {
        float[] stored = logits(List.of());
        float[] ordered = logits(calibration.orders());
        assertThat(calibration.order(0).isIdentity()).isFalse();
        for (int i = 0; i < stored.length; i++) {
            assertThat(ordered[i]).as("logit %d", i).isCloseTo(stored[i], within(1e-5f * Math.max(1, Math.abs(stored[i]))));
        }
    }

    @Test
    void whatIsWrittenIsRead() throws IOException {
        Calibration read;
        try (ModelFolder files = ModelFolder.open(model)) {
            read = Calibration.read(folder, files);
        }
        assertThat(read.manifest()).isEqualTo(calibration.manifest());
        assertThat(read.identity()).isEqualTo(calibration.identity()).hasSize(64);
        assertThat(read.orders()).isEqualTo(calibration.orders());
        for (int layer = 0; layer < 2; layer++) {
            assertThat(read.mass(layer)).isEqualTo(calibration.mass(layer)).hasSize(NEURONS);
            assertThat(read.predictor(layer, 32).orElseThrow().b())
                    .isEqualTo(calibration.predictor(layer, 32).orElseThrow().b());
        }
        assertThat(Calibration.read(folder.resolve(Calibration.FILE)).identity()).isEqualTo(read.identity());
    }

    @Test
    void neuronsThatNeverFireLieTogetherAtTheEnd() {
        for (int layer = 0; layer < 2; layer++) {
            float[] mass = calibration.mass(layer);
            float[] fired = calibration.fired(layer);
            for (int place = NEURONS - 32; place < NEURONS; place++) {
                assertThat(calibration.order(layer).at(place)).as("layer %d, place %d", layer, place).isLessThan(32);
                assertThat(mass[place]).isZero();
                assertThat(fired[place]).isZero();
            }
            assertThat(calibration.manifest().layers().get(layer).silent()).as("layer %d", layer).isBetween(0.2 - 1e-6, 0.3);
            assertThat(calibration.keptAt(layer, 32, Pass.BOTH, 1, 0)).as("layer %d: one block of five is dead", layer)
                    .isEqualTo(0.8);
        }
    }

    @Test
    void figuresAreOrderedAsPoliciesAre() {
        for (Manifest.Layer layer : calibration.manifest().layers()) {
            for (Manifest.Coverage c : List.of(layer.list(), layer.batch(), layer.drifted())) {
                assertThat(c.oracle()).as("%s", layer).isBetween(0.0, 1.0).isGreaterThanOrEqualTo(c.predicted() - 1e-9)
                        .isGreaterThanOrEqualTo(c.fixed() - 1e-9).isGreaterThanOrEqualTo(c.lowRank() - 1e-9);
                assertThat(c.predicted()).as("predicted beside random, %s", layer).isGreaterThan(c.random());
                assertThat(c.shareOfOracle()).as("%s", layer).isGreaterThan(0.9);
            }
            assertThat(layer.orders().stream().mapToDouble(Manifest.Order::mass).max().orElseThrow())
                    .as("%s", layer).isGreaterThan(layer.orders().getFirst().mass());
            assertThat(layer.coverageAt().get("0.25")).isLessThanOrEqualTo(layer.coverageAt().get("0.50"));
            assertThat(layer.blocksFor().get("0.90")).isLessThanOrEqualTo(layer.blocksFor().get("0.99"));
        }
    }

    @Test
    void whatALayerKeepsGrowsWithTheCoverage() {
        for (Pass pass : Pass.values()) {
            for (int rows : new int[]{0, 256}) {
                double previous = 0;
                for (double coverage : new double[]{0.1, 0.5, 0.9, 0.99, 1}) {
                    double kept = calibration.keptAt(0, 32, pass, coverage, rows);
                    assertThat(kept).as("%s, %d rows, coverage %.2f", pass, rows, coverage).isBetween(previous, 1.0);
                    previous = kept;
                }
                double shared = calibration.equalCoverage(32, pass, 0.6, rows);
                assertThat(shared).as("%s, %d rows", pass, rows).isBetween(0.3, 1.0);
            }
        }
        assertThatThrownBy(() -> calibration.keptAt(0, 64, Pass.BOTH, 0.9, 0)).isInstanceOf(IllegalArgumentException.class)
                .hasMessage("expected a block size out of [32], found 64");
    }

    @Test
    void thePredictorThatNobodyTrainedApproximatesFc1() throws IOException {
        // Of the full rank it is fc1 itself: a unit's score is a neuron's mass.
        LowRankPredictor p;
        float[] fc1;
        float[] bias;
        try (Penumbra penumbra = Penumbra.load(model, Device.CPU, 1, DType.F32)) {
            CalibrationConfig full = new CalibrationConfig(1, 1, 12, POSITIONS, 32, 256, 16, 24, 0.99, 0.4, 0, 0, 0, 7);
            NeuronOrder order = calibration.order(1);
            p = FirstLayerSvd.predictor(penumbra.model(), penumbra.folder(), 1, penumbra.model().neuronNorms(1), order,
                    full);
            fc1 = order.applyToRows(penumbra.model().fc1(1).toFloats(), 24);
            bias = order.apply(penumbra.folder().tensor("model.decoder.layers.1.fc1.bias", NEURONS).toFloats());
        }
        Random random = new Random(2);
        Matrix x = Matrix.zeros(1, 24);
        for (int j = 0; j < 24; j++) {
            x.values()[j] = (float) random.nextGaussian();
        }
        Matrix scores = PredictorScores.of(p, x, 1);
        for (int j = 0; j < NEURONS; j++) {
            double expected = bias[j];
            for (int k = 0; k < 24; k++) {
                expected += fc1[j * 24 + k] * x.values()[k];
            }
            assertThat(scores.values()[j]).as("neuron %d", j)
                    .isCloseTo((float) Math.max(0, expected) * p.norms()[j], within(1e-3f));
        }
    }

    @Test
    void aPredictorServesLargerBlocks() {
        // 160 neurons are five blocks of 32, which 64 does not divide.
        assertThat(calibration.predictor(0, 32)).isPresent();
        assertThat(calibration.predictor(0, 64)).isEmpty();
        assertThat(calibration.lowRank(0, 32).orElseThrow().unitsPerScore()).isEqualTo(32);
    }

    @Test
    void anotherModelsCalibrationIsRefusedByBothNames() throws IOException {
        Path other = shared.resolve("other");
        SIZES.write(other, new Random(6), neuron -> neuron < 32);
        try (ModelFolder files = ModelFolder.open(other)) {
            assertThatThrownBy(() -> Calibration.read(folder, files)).isInstanceOf(CalibrationException.class)
                    .hasMessageContaining(folder + ": expected a calibration of " + other + " (weights ")
                    .hasMessageContaining("found one of model (weights ");
        }
    }

    @Test
    void textThatIsTooShortIsRefused() throws IOException {
        try (Penumbra penumbra = Penumbra.load(model, Device.CPU, 1, DType.F32)) {
            assertThatThrownBy(
                    () -> Calibrator.calibrate(penumbra.model(), penumbra.folder(), text(1), CONFIG, folder, line -> {
                    })).isInstanceOf(DataException.class).hasMessageContaining("expected 2 samples or more");
            assertThatThrownBy(
                    () -> Calibrator.calibrate(penumbra.model(), penumbra.folder(), text(8), CONFIG, folder, line -> {
                    })).isInstanceOf(DataException.class)
                    .hasMessageContaining("expected 256 tokens or more in a batch of the ");
        }
    }

    @Test
    void aModelInAnotherOrderIsRefused() throws IOException {
        try (Penumbra penumbra = Penumbra.open(model, Device.CPU, 1, DType.F32, calibration.orders())) {
            penumbra.model().load();
            assertThatThrownBy(
                    () -> Calibrator.calibrate(penumbra.model(), penumbra.folder(), text(20), CONFIG, folder, line -> {
                    })).isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("expected a model in its checkpoint's order");
        }
    }

    @FunctionalInterface
    private interface Damage {
        void to(Map<String, Tensor> tensors, Map<String, String> metadata, Arena arena);
    }

    private static Path damaged(String name, Damage damage) throws IOException {
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
    void aFileThatIsNoGoodCalibrationIsToldByNameAndReason() throws IOException {
        assertThatThrownBy(() -> Calibration.read(shared.resolve("none"))).isInstanceOf(IOException.class)
                .hasMessageContaining("none: expected a calibration, found no file");
        Map<String, Damage> damages = Map.of(
                "expected the metadata penumbra.calibration, found none",
                (tensors, metadata, arena) -> metadata.remove("penumbra.calibration"),
                "expected a calibration of version 1 to 2, found 99",
                (tensors, metadata, arena) -> metadata.computeIfPresent("penumbra.calibration",
                        (key, text) -> text.replace("\"version\":2", "\"version\":99")),
                "expected a calibration's manifest",
                (tensors, metadata, arena) -> metadata.computeIfPresent("penumbra.calibration",
                        (key, text) -> text.replace("\"neurons\":160", "\"neurons\":\"many\"")),
                "expected layers, found none",
                (tensors, metadata, arena) -> metadata.computeIfPresent("penumbra.calibration",
                        (key, text) -> text.replace("\"layers\":", "\"floors\":")),
                "expected a blockSize of 1 or more, found 0",
                (tensors, metadata, arena) -> metadata.computeIfPresent("penumbra.calibration",
                        (key, text) -> text.replaceFirst("\"blockSize\":\\d+", "\"blockSize\":0")),
                "expected a tensor layers.1.order, found none of that name",
                (tensors, metadata, arena) -> tensors.remove("layers.1.order"),
                "expected each neuron from 0 to 159 once in an order, found 0 again",
                (tensors, metadata, arena) -> tensors.put("layers.0.order", Tensor.of(arena, new int[NEURONS])),
                "tensor layers.0.mass: expected F32[160], found F32[3]",
                (tensors, metadata, arena) -> tensors.put("layers.0.mass", Tensor.of(arena, 1f, 2f, 3f)),
                "tensor layers.0.predictor.bias: expected finite values, found NaN",
                (tensors, metadata, arena) -> tensors.put("layers.0.predictor.bias",
                        Tensor.of(arena, 1f, Float.NaN, 1f, 1f, 1f)));
        int count = 0;
        for (Map.Entry<String, Damage> damage : damages.entrySet()) {
            Path file = damaged("damaged" + count++, damage.getValue());
            assertThatThrownBy(() -> Calibration.read(file)).as(damage.getKey()).isInstanceOf(CalibrationException.class)
                    .hasMessageContaining(file.toString()).hasMessageContaining(damage.getKey());
        }
        Path cut = damaged("cut", (tensors, metadata, arena) -> {
        });
        try (FileChannel channel = FileChannel.open(cut, StandardOpenOption.WRITE)) {
            channel.truncate(channel.size() / 2);
        }
        assertThatThrownBy(() -> Calibration.read(cut)).isInstanceOf(CalibrationException.class)
                .hasMessageContaining(cut.toString());
    }

    @Test
    void theSameTextGivesTheSameFile() throws IOException {
        Path again = shared.resolve("again");
        try (Penumbra penumbra = Penumbra.load(model, Device.CPU, 1, DType.F32)) {
            Calibration second = Calibrator.calibrate(penumbra.model(), penumbra.folder(), text(120), CONFIG, again,
                    line -> {
                    });
            assertThat(second.identity()).isEqualTo(calibration.identity());
        }
    }
}
