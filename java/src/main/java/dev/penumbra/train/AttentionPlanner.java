package dev.penumbra.train;

import dev.penumbra.model.LanguageModel;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.AttentionLayouts;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.predict.AttentionSparsity.Layer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** What each layer's attention makes of the sparsity that a run is asked for. */
public final class AttentionPlanner {

    /** Lists and the masses they are made from cost something too: a layer that leaves less than this out runs dense. */
    public static final double WORTHWHILE = 0.9;
    /** Layouts are drawn from this, so that a resumed run has the same. */
    private static final long LAYOUT_SEED = 0x9E3779B9L;
    /** Rows of a block that a GPU's kernels take. */
    private static final int DEVICE_BLOCK = 128;
    /** Halvings of an interval of coverages. */
    private static final int BISECTIONS = 40;

    private AttentionPlanner() {
    }

    /**
     * @param seqLen tokens of the longest sample
     * @param exposure what calibration found out, or null
     * @throws IllegalArgumentException when the policy needs a calibration and there is none, it is another model's, or knows
     *     only shorter samples or other blocks
     */
    public static AttentionSparsity plan(LanguageModel model, AttentionConfig config, int seqLen,
            @Nullable AttentionExposure exposure) {
        int width = Math.ceilDiv(seqLen, config.blockSize());
        if (config.blockSize() != DEVICE_BLOCK && !config.policy().isDense() && !model.backend().device().isHost()) {
            throw new IllegalArgumentException("expected attention blocks of " + DEVICE_BLOCK + " rows on "
                    + model.backend().describe() + ", found " + config.blockSize());
        }
        if (exposure != null && (exposure.layers() != model.mlpLayers() || exposure.heads() != model.attentionHeads())) {
            throw new IllegalArgumentException("expected a calibration of " + model.mlpLayers() + " layers of "
                    + model.attentionHeads() + " heads, found " + exposure.layers() + " of " + exposure.heads());
        }
        boolean dense = config.policy().isDense() || width < 2;
        if (config.policy().needsCalibration() && !dense) {
            require(config, width, exposure);
        }
        boolean known = exposure != null && exposure.blockSize() == config.blockSize();
        Tables tables = new Tables(config, model.attentionHeads(), width);
        List<Layer> layers = new ArrayList<>();
        for (int i = 0; i < model.mlpLayers(); i++) {
            boolean unpooled = config.policy() == AttentionPolicy.PREDICTED && !model.hasNormBeforeAttention(i);
            layers.add(dense || unpooled ? Layer.DENSE : layer(config, tables, known ? exposure : null, i));
        }
        return new AttentionSparsity(config, model.attentionHeads(), width, layers);
    }

    private static void require(AttentionConfig config, int width, @Nullable AttentionExposure exposure) {
        String policy = config.policy().word();
        if (exposure == null) {
            throw new IllegalArgumentException("expected a calibration of attention for " + policy
                    + " attention, found none: penumbra calibrate makes one");
        }
        if (exposure.blockSize() != config.blockSize()) {
            throw new IllegalArgumentException("expected a calibration for " + policy + " attention in blocks of "
                    + config.blockSize() + " rows, found one for blocks of " + exposure.blockSize());
        }
        if (exposure.width() < width) {
            throw new IllegalArgumentException("expected a calibration for " + policy + " attention over samples of "
                    + width + " blocks of " + config.blockSize() + " rows, found one over samples of up to "
                    + exposure.width() + ": penumbra calibrate with a --seq-len as long as training's makes one");
        }
    }

    private static Layer layer(AttentionConfig config, Tables tables, @Nullable AttentionExposure exposure, int i) {
        AttentionPolicy policy = config.policy();
        double coverage = config.coverage();
        double budget = config.budget();
        if (exposure != null && policy.readsMass() && coverage < 1 && budget == 1
                && Arrays.stream(exposure.keptAt(i, coverage)).average().orElse(1) > WORTHWHILE) {
            return Layer.DENSE;
        }
        float[] budgets = budget == 1
                ? null
                : exposure != null && policy.readsMass()
                        ? budgets(exposure, i, budget)
                        : equal(tables.heads(), budget);
        AttentionPredictor predictor = policy == AttentionPolicy.PREDICTED
                ? exposure.predictor(i).orElseThrow(() -> new IllegalArgumentException("layer " + i
                        + ": expected a calibration with a predictor of attention, found one without"))
                : null;
        return new Layer(false, coverage, budgets, tables.of(i, exposure), predictor);
    }

    private static float[] equal(int heads, double budget) {
        float[] budgets = new float[heads];
        Arrays.fill(budgets, (float) budget);
        return budgets;
    }

    /** What each head needs for the largest coverage, the same for all heads, that the layer's budget pays for. */
    private static float[] budgets(AttentionExposure exposure, int layer, double budget) {
        double low = 0;
        double high = 1;
        for (int n = 0; n < BISECTIONS; n++) {
            double middle = (low + high) / 2;
            if (mean(exposure.keptAt(layer, middle)) > budget) {
                high = middle;
            } else {
                low = middle;
            }
        }
        double[] needed = exposure.keptAt(layer, Math.max(low, 1e-9));
        // What steps between coverages leave over goes to all heads, as far as each can use it.
        double factor = Math.min(1, budget / mean(needed));
        float[] budgets = scaled(needed, factor);
        for (int n = 0; n < BISECTIONS && mean(budgets) < budget * (1 - 1e-6); n++) {
            factor *= budget / mean(budgets);
            budgets = scaled(needed, factor);
        }
        return budgets;
    }

    private static float[] scaled(double[] needed, double factor) {
        float[] budgets = new float[needed.length];
        for (int h = 0; h < budgets.length; h++) {
            budgets[h] = (float) Math.clamp(needed[h] * factor, 1e-6, 1);
        }
        return budgets;
    }

    private static double mean(double[] values) {
        return Arrays.stream(values).average().orElse(0);
    }

    private static double mean(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += value;
        }
        return sum / values.length;
    }

    /** Tables of masses; those that are the same in every layer are made once. */
    private static final class Tables {
        private final AttentionConfig config;
        private final int heads;
        private final int width;
        private float @Nullable [] same;

        Tables(AttentionConfig config, int heads, int width) {
            this.config = config;
            this.heads = heads;
            this.width = width;
        }

        int heads() {
            return heads;
        }

        float @Nullable [] of(int layer, @Nullable AttentionExposure exposure) {
            boolean bounded = config.budget() < 1;
            return switch (config.policy()) {
                case ALL -> same = same == null ? AttentionLayouts.all(heads, width) : same;
                case LONGFORMER -> same = same == null
                        ? AttentionLayouts.longformer(heads, width, config.blockSize(), bounded, LAYOUT_SEED)
                        : same;
                case BIGBIRD -> AttentionLayouts.bigBird(heads, width, bounded, LAYOUT_SEED + layer);
                case STATIC -> upperLeft(exposure.table(layer), exposure.width());
                default -> null;
            };
        }

        /** Causal masses of shorter samples are the upper left part of the longest's. */
        private float[] upperLeft(float[] table, int columns) {
            float[] part = new float[heads * width * width];
            for (int h = 0; h < heads; h++) {
                for (int i = 0; i < width; i++) {
                    System.arraycopy(table, (h * columns + i) * columns, part, (h * width + i) * width, width);
                }
            }
            return part;
        }
    }
}
