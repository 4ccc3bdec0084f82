package dev.penumbra.expose;

import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.io.SafetensorsWriter;
import dev.penumbra.io.TextFiles;
import dev.penumbra.io.WeightsFileException;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import org.jspecify.annotations.Nullable;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.DeserializationFeature;
import tools.jackson.databind.json.JsonMapper;

/**
 * What a frozen model uses, found out over sample text. Of its MLPs: how neurons are ordered, how many blocks a layer needs,
 * and predictors of which; of its attention, where the text was long enough, what blocks weigh, layouts and predictors. One
 * safetensors file holds it, with a {@link Manifest} that names the model by its hash.
 */
public final class Calibration implements MlpExposure {

    /** The file within a calibration's folder. */
    public static final String FILE = "calibration.safetensors";

    static final int VERSION = 2;
    /** Without attention. */
    private static final int OLDEST = 1;
    private static final String METADATA = "penumbra.calibration";
    /** Block sizes that kernels have. */
    private static final int[] BLOCK_SIZES = {32, 64, 128};
    /** A layer that needs more of its blocks than this gains nothing that would pay for the lists. */
    static final double DENSE_FROM = 0.95;

    private static final JsonMapper JSON = JsonMapper.builder()
            .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .enable(DeserializationFeature.FAIL_ON_NULL_FOR_PRIMITIVES)
            .build();

    /** Enough for an f32. */
    private static final int BISECTIONS = 24;

    /** Over which tokens a list's blocks are chosen. */
    enum Scope {
        LIST, BATCH
    }

    /**
     * One layer's data; all but the order in the order of the neurons' places.
     *
     * @param mass [neurons]: mean over tokens
     * @param fired [neurons]: part of the tokens
     * @param predictor of blocks of the calibration's size
     * @param lowRank of neurons: a unit is one
     * @param curves for each block size, [pass, scope, mean and low, blocks]: the part of a list's mass in its k + 1 heaviest
     */
    @SuppressWarnings("ArrayRecordComponent")
    record Layer(NeuronOrder order, float[] mass, float[] fired, LowRankPredictor predictor, LowRankPredictor lowRank,
            Map<Integer, float[]> curves) {
    }

    private final Manifest manifest;
    private final List<Layer> layers;
    private final @Nullable AttentionCalibration attention;
    private final String identity;

    Calibration(Manifest manifest, List<Layer> layers, @Nullable AttentionCalibration attention, String identity) {
        this.manifest = manifest;
        this.layers = List.copyOf(layers);
        this.attention = attention;
        this.identity = identity;
    }

    public Manifest manifest() {
        return manifest;
    }

    /** What is known of attention; empty where the text had no sample of two blocks, and in files of version 1. */
    public Optional<AttentionCalibration> attention() {
        return Optional.ofNullable(attention);
    }

    @Override
    public int layers() {
        return layers.size();
    }

    @Override
    public int neurons() {
        return manifest.neurons();
    }

    @Override
    public NeuronOrder order(int layer) {
        return layers.get(layer).order();
    }

    /** One a layer, as a model is opened with. */
    public List<NeuronOrder> orders() {
        return layers.stream().map(Layer::order).toList();
    }

    @Override
    public float[] mass(int layer) {
        return layers.get(layer).mass().clone();
    }

    @Override
    public float[] fired(int layer) {
        return layers.get(layer).fired().clone();
    }

    /** For blocks of the calibration's size and multiples of it. */
    @Override
    public Optional<LowRankPredictor> predictor(int layer, int blockSize) {
        return regrouped(layers.get(layer).predictor(), blockSize, manifest.blockSize());
    }

    @Override
    public Optional<LowRankPredictor> lowRank(int layer, int blockSize) {
        return regrouped(layers.get(layer).lowRank(), blockSize, 1);
    }

    private static Optional<LowRankPredictor> regrouped(LowRankPredictor p, int blockSize, int unitSize) {
        int perScore = blockSize / unitSize;
        return blockSize % unitSize != 0 || p.units() % perScore != 0
                ? Optional.empty()
                : Optional.of(
                        new LowRankPredictor(p.rank(), p.hidden(), p.units(), p.a(), p.b(), p.bias(), p.norms(), perScore,
                                p.poolRows()));
    }

    @Override
    public double keptAt(int layer, int blockSize, Pass pass, double coverage, int rowsPerList) {
        float[] low = curve(layer, blockSize, pass, rowsPerList == 0 ? Scope.BATCH : Scope.LIST, 1);
        double kept = (double) BlockMasses.needed(low, coverage) / low.length;
        return kept > DENSE_FROM ? 1 : kept;
    }

    /** The part of its mass that the mean list keeps with the best {@code kept} part of the blocks. */
    public double coverageAt(int layer, int blockSize, Pass pass, double kept, int rowsPerList) {
        float[] mean = curve(layer, blockSize, pass, rowsPerList == 0 ? Scope.BATCH : Scope.LIST, 0);
        return mean[Math.clamp(Math.round(kept * mean.length), 1, mean.length) - 1];
    }

    /**
     * The coverage that all layers can have while together they keep {@code budget} of their blocks: asked for it, a layer that
     * spreads its mass over many blocks keeps more of them than one that does not.
     */
    public double equalCoverage(int blockSize, Pass pass, double budget, int rowsPerList) {
        double low = 0;
        double high = 1;
        for (int i = 0; i < BISECTIONS; i++) {
            double coverage = (low + high) / 2;
            double sum = 0;
            for (int layer = 0; layer < layers(); layer++) {
                float[] mean = curve(layer, blockSize, pass, rowsPerList == 0 ? Scope.BATCH : Scope.LIST, 0);
                sum += (double) BlockMasses.needed(mean, coverage) / mean.length;
            }
            if (sum / layers() > budget) {
                high = coverage;
            } else {
                low = coverage;
            }
        }
        return high;
    }

    private float[] curve(int layer, int blockSize, Pass pass, Scope scope, int kind) {
        float[] curves = layers.get(layer).curves().get(blockSize);
        if (curves == null) {
            throw new IllegalArgumentException("expected a block size out of " + layers.get(layer).curves().keySet()
                    + ", found " + blockSize);
        }
        int blocks = neurons() / blockSize;
        int at = ((pass.ordinal() * Scope.values().length + scope.ordinal()) * 2 + kind) * blocks;
        return Arrays.copyOfRange(curves, at, at + blocks);
    }

    /** Block sizes of at least {@code smallest} that divide the neurons. */
    static int[] blockSizes(int smallest, int neurons) {
        return Arrays.stream(BLOCK_SIZES).filter(size -> size >= smallest && neurons % size == 0).toArray();
    }

    @Override
    public String identity() {
        return identity;
    }

    /** Writes {@link #FILE} into a folder and reads it again. */
    Calibration write(Path folder) throws IOException {
        try (Arena arena = Arena.ofConfined()) {
            Map<String, Tensor> tensors = new TreeMap<>();
            for (int i = 0; i < layers.size(); i++) {
                Layer layer = layers.get(i);
                String at = "layers." + i + ".";
                tensors.put(at + "order", Tensor.of(arena, layer.order().toArray()));
                tensors.put(at + "mass", Tensor.of(arena, layer.mass()));
                tensors.put(at + "fired", Tensor.of(arena, layer.fired()));
                put(tensors, arena, at + "predictor.", layer.predictor());
                put(tensors, arena, at + "low_rank.", layer.lowRank());
                layer.curves().forEach((size, values) -> tensors.put(at + "curves." + size, Tensor.of(arena, values)));
            }
            if (attention != null) {
                attention.put(tensors, arena);
            }
            SafetensorsWriter.write(folder.resolve(FILE), tensors,
                    Map.of("format", "pt", METADATA, JSON.writeValueAsString(manifest)));
        }
        return read(folder);
    }

    private static void put(Map<String, Tensor> tensors, Arena arena, String at, LowRankPredictor predictor) {
        tensors.put(at + "a", Tensor.of(arena, predictor.a()).reshape(predictor.rank(), predictor.hidden()));
        tensors.put(at + "b", Tensor.of(arena, predictor.b()).reshape(predictor.units(), predictor.rank()));
        if (predictor.bias() != null) {
            tensors.put(at + "bias", Tensor.of(arena, predictor.bias()));
        }
        if (predictor.norms() != null) {
            tensors.put(at + "norms", Tensor.of(arena, predictor.norms()));
        }
    }

    /**
     * Reads a calibration and checks that it is this model's.
     *
     * @param calibration a folder that {@code penumbra calibrate} wrote, or its file
     * @throws CalibrationException when it is no calibration, or another model's: the message names both
     */
    public static Calibration read(Path calibration, ModelFolder model) throws IOException {
        Calibration read = read(calibration);
        String hash = model.weightsHash();
        if (!hash.equals(read.manifest.modelHash())) {
            throw new CalibrationException(calibration + ": expected a calibration of " + model.directory() + " (weights "
                    + shortened(hash) + "), found one of " + read.manifest.model() + " (weights "
                    + shortened(read.manifest.modelHash()) + "): calibrate this model");
        }
        return read;
    }

    private static String shortened(String hash) {
        return hash.substring(0, Math.min(12, hash.length()));
    }

    /** Reads a calibration of whichever model. */
    public static Calibration read(Path calibration) throws IOException {
        Path file = Files.isDirectory(calibration) ? calibration.resolve(FILE) : calibration;
        if (!Files.isRegularFile(file)) {
            throw new IOException(file + ": expected a calibration, found no file: penumbra calibrate writes one");
        }
        try (SafetensorsFile tensors = SafetensorsFile.open(file)) {
            Manifest manifest = manifest(file, tensors.metadata().get(METADATA));
            List<Layer> layers = new ArrayList<>();
            for (int i = 0; i < manifest.layers().size(); i++) {
                layers.add(layer(tensors, manifest, "layers." + i + "."));
            }
            String identity = sha256(Files.readAllBytes(file));
            AttentionCalibration attention = manifest.attention() == null
                    ? null
                    : AttentionCalibration.read(tensors, manifest.attention(), manifest.hidden(), identity);
            return new Calibration(manifest, layers, attention, identity);
        } catch (WeightsFileException | IllegalArgumentException | IllegalStateException broken) {
            // A weights file's own failures name it.
            throw new CalibrationException((broken instanceof WeightsFileException ? "" : file + ": ") + broken.getMessage(),
                    broken);
        }
    }

    private static Manifest manifest(Path file, @Nullable String text) {
        if (text == null) {
            throw new CalibrationException(
                    file + ": expected the metadata " + METADATA + ", found none: this is no calibration");
        }
        try {
            int version = JSON.readTree(text).path("version").asInt(0);
            if (version < OLDEST || version > VERSION) {
                throw new CalibrationException(file + ": expected a calibration of version " + OLDEST + " to " + VERSION
                        + ", found " + version + ": calibrate again");
            }
            return JSON.readValue(text, Manifest.class);
        } catch (JacksonException broken) {
            throw new CalibrationException(file + ": expected a calibration's manifest: " + TextFiles.problem(broken),
                    broken);
        }
    }

    private static Layer layer(SafetensorsFile file, Manifest manifest, String at) {
        int neurons = manifest.neurons();
        Map<Integer, float[]> curves = new TreeMap<>();
        for (int size : blockSizes(manifest.blockSize(), neurons)) {
            int count = Pass.values().length * Scope.values().length * 2 * (neurons / size);
            curves.put(size, floats(file, at + "curves." + size, count));
        }
        return new Layer(
                new NeuronOrder(tensor(file, at + "order", DType.I32, neurons).toInts()),
                floats(file, at + "mass", neurons),
                floats(file, at + "fired", neurons),
                predictor(file, manifest, at + "predictor.", neurons / manifest.blockSize()),
                predictor(file, manifest, at + "low_rank.", neurons),
                curves);
    }

    private static LowRankPredictor predictor(SafetensorsFile file, Manifest manifest, String at, int units) {
        Shape a = file.tensor(at + "a").shape();
        int rank = Math.toIntExact(a.dim(0));
        return new LowRankPredictor(rank, manifest.hidden(), units,
                floats(file, at + "a", rank, manifest.hidden()),
                floats(file, at + "b", units, rank),
                file.entries().containsKey(at + "bias") ? floats(file, at + "bias", units) : null,
                file.entries().containsKey(at + "norms") ? floats(file, at + "norms", units) : null,
                1, manifest.poolRows());
    }

    static float[] floats(SafetensorsFile file, String name, long... shape) {
        float[] values = tensor(file, name, DType.F32, shape).toFloats();
        requireFinite(name, values);
        return values;
    }

    static void requireFinite(String name, float[] values) {
        for (float value : values) {
            if (!Float.isFinite(value)) {
                throw new IllegalArgumentException("tensor " + name + ": expected finite values, found " + value);
            }
        }
    }

    static Tensor tensor(SafetensorsFile file, String name, DType dtype, long... shape) {
        Tensor tensor = file.tensor(name);
        if (tensor.dtype() != dtype || !tensor.shape().equals(Shape.of(shape))) {
            throw new IllegalArgumentException(
                    "tensor " + name + ": expected " + dtype + Shape.of(shape) + ", found " + tensor);
        }
        return tensor;
    }

    private static String sha256(byte[] bytes) {
        try {
            return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
        } catch (NoSuchAlgorithmException missing) {
            throw new IllegalStateException("expected SHA-256, which every Java platform has", missing);
        }
    }

    @Override
    public String toString() {
        return "calibration of " + layers() + " layers of " + neurons() + " neurons in blocks of " + manifest.blockSize()
                + (attention == null ? ", without attention" : ", with " + attention);
    }
}
