package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.BlockMask;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.Set;

/** A random model with samples of several attention blocks: alone in a row, and packed with others. */
final class AttentionFixture {

    static final int BLOCK = 64;
    static final int POSITIONS = 330;
    static final int WIDTH = Math.ceilDiv(POSITIONS, BLOCK);
    static final int HEADS = 2;
    private static final int HIDDEN = 24;
    private static final int[] LENGTHS = {330, 130, 65, 3};
    private static final int[] MORE_LENGTHS = {330, 310, 200, 130, 300, 330};

    private AttentionFixture() {
    }

    static SparseFixture open(Path folder, Backend backend, boolean preNorm) throws IOException {
        return open(folder, backend, preNorm, 2, LoraConfig.OPT_TARGETS);
    }

    static SparseFixture open(Path folder, Backend backend, boolean preNorm, int layers, Collection<String> targets)
            throws IOException {
        return open(folder, backend, preNorm, layers, targets, LENGTHS);
    }

    /** With more samples, of which nearly all fill a row. */
    static SparseFixture openToTrain(Path folder, Backend backend) throws IOException {
        return open(folder, backend, true, 2, LoraConfig.OPT_TARGETS, MORE_LENGTHS);
    }

    private static SparseFixture open(Path folder, Backend backend, boolean preNorm, int layers, Collection<String> targets,
            int[] lengths) throws IOException {
        return new SparseFixture(folder, backend, new RandomOpt(HIDDEN, HEADS, SparseFixture.BLOCK * SparseFixture.BLOCKS,
                layers, 50, POSITIONS, HIDDEN, preNorm, false), Set.copyOf(targets), neuron -> false, List.of(), 0, lengths);
    }

    /** A coverage and a budget, where the policy takes them. */
    static AttentionConfig config(AttentionPolicy policy, Pass pass, double coverage, double budget) {
        return config(policy, pass, coverage, budget, BLOCK);
    }

    /** Likewise, with blocks of another size. */
    static AttentionConfig config(AttentionPolicy policy, Pass pass, double coverage, double budget, int block) {
        return new AttentionConfig(policy, pass, policy.takesCoverage() ? coverage : 1, policy.takesBudget() ? budget : 1,
                block, 0, 1, false);
    }

    /**
     * Tables and predictors of random numbers, and heads of which the second needs twice what the first does.
     *
     * @param least part of the blocks that every head needs
     */
    record Found(int layers, int heads, int blockSize, int width, double least) implements AttentionExposure {

        @Override
        public float[] table(int layer) {
            Random random = new Random(layer);
            float[] table = new float[heads * width * width];
            for (int i = 0; i < table.length; i++) {
                table[i] = random.nextFloat();
            }
            return table;
        }

        @Override
        public Optional<AttentionPredictor> predictor(int layer) {
            Random random = new Random(100 + layer);
            return Optional.of(new AttentionPredictor(heads, 8, HIDDEN, width, gaussian(random, 2 * heads * 8 * HIDDEN),
                    gaussian(random, 2 * heads * 8), gaussian(random, heads * width), 32, blockSize));
        }

        private static float[] gaussian(Random random, int count) {
            float[] values = new float[count];
            for (int i = 0; i < count; i++) {
                values[i] = (float) (0.3 * random.nextGaussian());
            }
            return values;
        }

        @Override
        public double[] keptAt(int layer, double coverage) {
            double[] kept = new double[heads];
            for (int h = 0; h < heads; h++) {
                kept[h] = Math.max(least, coverage * (h + 1) / heads);
            }
            return kept;
        }

        @Override
        public String identity() {
            return "found";
        }
    }

    static Found found(LanguageModel model) {
        return found(model, BLOCK);
    }

    private static Found found(LanguageModel model, int block) {
        return new Found(model.mlpLayers(), HEADS, block, Math.ceilDiv(POSITIONS, block), 0);
    }

    static AttentionSparsity sparsity(SparseFixture f, AttentionConfig config) {
        return AttentionPlanner.plan(f.model, config, POSITIONS,
                config.policy().needsCalibration() ? found(f.model, config.blockSize()) : null);
    }

    /** A mask that is the same in every layer and sample. */
    static AttentionSparsity fixed(SparseFixture f, Pass pass, BlockMask.Rule rule) {
        float[] table = new float[HEADS * WIDTH * WIDTH];
        for (int h = 0; h < HEADS; h++) {
            for (int i = 0; i < WIDTH; i++) {
                for (int j = 0; j <= i; j++) {
                    table[(h * WIDTH + i) * WIDTH + j] = rule.keeps(h, i, j) ? 1 : 0;
                }
            }
        }
        List<AttentionSparsity.Layer> layers = new ArrayList<>();
        for (int i = 0; i < f.model.mlpLayers(); i++) {
            layers.add(new AttentionSparsity.Layer(false, 1, null, table, null));
        }
        return new AttentionSparsity(config(AttentionPolicy.STATIC, pass, 0.99, 1), HEADS, WIDTH, layers);
    }
}
