package dev.penumbra.expose;

import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.sparse.BlockPattern;
import dev.penumbra.sparse.PatternPool;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/** The part of a {@link Calibration} that is about attention: masses by place, layouts out of a pool, and predictors. */
public final class AttentionCalibration implements AttentionExposure {

    /** What {@link #keptAt} is told from; in between, lines connect them, which lie above the true curve. */
    static final double[] COVERAGES = {0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995,
            0.999,
            1};
    /** A kernel rounds a budget's blocks down: what is a whole number must not come out below it. */
    private static final double ROUNDING = 1e-6;

    private static final String POOL = "attention.pool";

    /**
     * One layer's data.
     *
     * @param table [heads, width, width]: the mean part of a query block's mass
     * @param highest [heads, width, width]: the largest part that any sample had
     * @param needed [heads, mean and most, coverages]: part of the blocks
     * @param layouts entries of the pool, one array a head
     */
    @SuppressWarnings("ArrayRecordComponent")
    record Layer(float[] table, float[] highest, float[] needed, List<int[]> layouts,
            @Nullable AttentionPredictor predictor) {
    }

    private final Manifest.Attention figures;
    private final PatternPool pool;
    private final List<Layer> layers;
    private final String identity;

    AttentionCalibration(Manifest.Attention figures, PatternPool pool, List<Layer> layers, String identity) {
        this.figures = figures;
        this.pool = pool;
        this.layers = List.copyOf(layers);
        this.identity = identity;
    }

    public Manifest.Attention figures() {
        return figures;
    }

    /** What heads put their layouts together from. */
    public PatternPool pool() {
        return pool;
    }

    /** A head's layout: the union of its entries of the pool, and the blocks that are always kept. */
    public BlockPattern layout(int layer, int head) {
        return pool.union(layers.get(layer).layouts().get(head));
    }

    /** The places in the pool that a head's layout is the union of. */
    public int[] layoutEntries(int layer, int head) {
        return layers.get(layer).layouts().get(head).clone();
    }

    @Override
    public int layers() {
        return layers.size();
    }

    @Override
    public int heads() {
        return figures.heads();
    }

    @Override
    public int blockSize() {
        return figures.blockSize();
    }

    @Override
    public int width() {
        return figures.width();
    }

    @Override
    public float[] table(int layer) {
        return layers.get(layer).table().clone();
    }

    /** [heads, width, width]: the largest part of query block i's mass on key block j that any sample had. */
    public float[] highest(int layer) {
        return layers.get(layer).highest().clone();
    }

    @Override
    public Optional<AttentionPredictor> predictor(int layer) {
        return Optional.ofNullable(layers.get(layer).predictor());
    }

    @Override
    public double[] keptAt(int layer, double coverage) {
        double[] kept = new double[heads()];
        for (int head = 0; head < kept.length; head++) {
            int at = (head * 2 + 1) * COVERAGES.length;
            float[] most = Arrays.copyOfRange(layers.get(layer).needed(), at, at + COVERAGES.length);
            kept[head] = Math.min(1, interpolated(most, coverage) + ROUNDING);
        }
        return kept;
    }

    private static double interpolated(float[] values, double coverage) {
        int above = 0;
        while (above < COVERAGES.length - 1 && COVERAGES[above] < coverage) {
            above++;
        }
        if (above == 0 || coverage >= COVERAGES[above]) {
            return values[above];
        }
        double part = (coverage - COVERAGES[above - 1]) / (COVERAGES[above] - COVERAGES[above - 1]);
        return values[above - 1] + part * (values[above] - values[above - 1]);
    }

    @Override
    public String identity() {
        return identity;
    }

    void put(Map<String, Tensor> tensors, Arena arena) {
        int width = width();
        int heads = heads();
        Tensor patterns = Tensor.allocate(arena, DType.U8, Shape.of(pool.patterns().size(), width, width));
        for (int p = 0; p < pool.patterns().size(); p++) {
            for (int i = 0; i < width; i++) {
                for (int j : pool.patterns().get(p).keys(i)) {
                    patterns.segment().set(ValueLayout.JAVA_BYTE, ((long) p * width + i) * width + j, (byte) 1);
                }
            }
        }
        tensors.put(POOL, patterns);
        for (int l = 0; l < layers.size(); l++) {
            Layer layer = layers.get(l);
            String at = prefix(l);
            tensors.put(at + "table", Tensor.of(arena, layer.table()).reshape(heads, width, width));
            tensors.put(at + "highest", Tensor.of(arena, layer.highest()).reshape(heads, width, width));
            tensors.put(at + "needed", Tensor.of(arena, layer.needed()).reshape(heads, 2, COVERAGES.length));
            tensors.put(at + "layout", layouts(arena, layer.layouts()));
            AttentionPredictor p = layer.predictor();
            if (p != null) {
                tensors.put(at + "predictor.a", bf16(arena, p.a()).reshape(2, heads, p.rank(), p.hidden()));
                tensors.put(at + "predictor.bias", Tensor.of(arena, p.bias()).reshape(2, heads, p.rank()));
                tensors.put(at + "predictor.distance", Tensor.of(arena, p.distance()).reshape(heads, width));
            }
        }
    }

    private static String prefix(int layer) {
        return "attention.layers." + layer + ".";
    }

    /** [heads, longest], filled up with -1. */
    private static Tensor layouts(Arena arena, List<int[]> layouts) {
        int longest = Math.max(1, layouts.stream().mapToInt(entries -> entries.length).max().orElse(1));
        int[] all = new int[layouts.size() * longest];
        Arrays.fill(all, -1);
        for (int h = 0; h < layouts.size(); h++) {
            System.arraycopy(layouts.get(h), 0, all, h * longest, layouts.get(h).length);
        }
        return Tensor.of(arena, all).reshape(layouts.size(), longest);
    }

    /** As kernels read it. */
    private static Tensor bf16(Arena arena, float[] values) {
        Tensor tensor = Tensor.allocate(arena, DType.BF16, Shape.of(values.length));
        tensor.copyFrom(values);
        return tensor;
    }

    /** @param hidden of the model */
    static AttentionCalibration read(SafetensorsFile file, Manifest.Attention figures, int hidden, String identity) {
        PatternPool pool = pool(file, figures);
        List<Layer> layers = new ArrayList<>();
        for (int l = 0; l < figures.layers().size(); l++) {
            layers.add(layer(file, figures, hidden, pool, prefix(l)));
        }
        return new AttentionCalibration(figures, pool, layers, identity);
    }

    private static PatternPool pool(SafetensorsFile file, Manifest.Attention figures) {
        int width = figures.width();
        List<String> names = figures.patterns();
        MemorySegment memory = Calibration.tensor(file, POOL, DType.U8, names.size(), width, width).segment();
        List<BlockPattern> patterns = new ArrayList<>();
        for (int p = 0; p < names.size(); p++) {
            long at = (long) p * width * width;
            for (int i = 0; i < width; i++) {
                for (int j = 0; j < width; j++) {
                    byte value = memory.get(ValueLayout.JAVA_BYTE, at + (long) i * width + j);
                    if (value != 0 && (value != 1 || j > i)) {
                        throw new IllegalArgumentException("tensor " + POOL + ": pattern " + names.get(p)
                                + ": expected 0 or, on and below the diagonal, 1, found " + value + " at [" + i + ", " + j
                                + "]");
                    }
                }
            }
            patterns.add(BlockPattern.of(names.get(p), width,
                    (i, j) -> memory.get(ValueLayout.JAVA_BYTE, at + (long) i * width + j) != 0));
        }
        return new PatternPool(figures.poolVersion(), patterns);
    }

    private static Layer layer(SafetensorsFile file, Manifest.Attention figures, int hidden, PatternPool pool, String at) {
        int heads = figures.heads();
        int width = figures.width();
        return new Layer(
                Calibration.floats(file, at + "table", heads, width, width),
                Calibration.floats(file, at + "highest", heads, width, width),
                Calibration.floats(file, at + "needed", heads, 2, COVERAGES.length),
                layouts(file, at + "layout", heads, pool),
                file.entries().containsKey(at + "predictor.a") ? predictor(file, figures, hidden, at + "predictor.") : null);
    }

    private static List<int[]> layouts(SafetensorsFile file, String name, int heads, PatternPool pool) {
        Shape shape = file.tensor(name).shape();
        if (shape.rank() != 2) {
            throw new IllegalArgumentException("tensor " + name + ": expected [heads, entries], found " + shape);
        }
        int longest = Math.toIntExact(shape.dim(1));
        int[] all = Calibration.tensor(file, name, DType.I32, heads, longest).toInts();
        List<int[]> layouts = new ArrayList<>();
        for (int h = 0; h < heads; h++) {
            int[] entries = Arrays.stream(all, h * longest, (h + 1) * longest).filter(entry -> entry != -1).toArray();
            for (int entry : entries) {
                if (entry < 0 || entry >= pool.patterns().size()) {
                    throw new IllegalArgumentException("tensor " + name + ": expected places in a pool of "
                            + pool.patterns().size() + " patterns, found " + entry);
                }
            }
            layouts.add(entries);
        }
        return layouts;
    }

    private static AttentionPredictor predictor(SafetensorsFile file, Manifest.Attention figures, int hidden, String at) {
        int heads = figures.heads();
        float[] a = Calibration.tensor(file, at + "a", DType.BF16, 2, heads, figures.rank(), hidden).toFloats();
        Calibration.requireFinite(at + "a", a);
        return new AttentionPredictor(heads, figures.rank(), hidden, figures.width(), a,
                Calibration.floats(file, at + "bias", 2, heads, figures.rank()),
                Calibration.floats(file, at + "distance", heads, figures.width()), figures.poolRows(), figures.blockSize());
    }

    @Override
    public String toString() {
        return "attention of " + heads() + " heads in blocks of " + blockSize() + ", samples of up to " + width()
                + " blocks";
    }
}
