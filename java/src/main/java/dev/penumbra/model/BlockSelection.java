package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.SplittableRandom;
import java.util.function.IntFunction;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** What the choices of MLPs' blocks and of attention's have in common: how much lists are asked for, and what is told of them. */
abstract class BlockSelection {

    /** Odd, so that steps that follow each other draw from far apart. */
    private static final long STEP_MIX = 0x9E3779B97F4A7C15L;

    final Backend backend;
    final Buffers buffers;
    private final boolean backwardOnly;
    private final int senseEvery;
    private final int layers;
    private final Tensor summaries;
    private int tightness;

    /**
     * @param of what buffers are called by
     * @param senseEvery as the configurations have it
     */
    BlockSelection(Backend backend, Buffers buffers, String of, int layers, Pass pass, int senseEvery) {
        this.backend = backend;
        this.buffers = buffers;
        this.layers = layers;
        backwardOnly = pass == Pass.BACKWARD;
        this.senseEvery = senseEvery;
        summaries = buffers.activations(of + " summaries", DType.F32, layers, SelectBlocks.SUMMARY_SIZE);
    }

    /** Whether a layer has blocks to choose. */
    abstract boolean isSparse(int layer);

    /** Whether the forward pass is dense. */
    final boolean isBackwardOnly() {
        return backwardOnly;
    }

    final int layers() {
        return layers;
    }

    /** f32 [layers, 3], as {@link SelectBlocks} writes it; rows of dense layers mean nothing. */
    final Tensor summaries() {
        return summaries;
    }

    final Tensor summary(int layer) {
        return summaries.slice(0, layer, layer + 1L).reshape(SelectBlocks.SUMMARY_SIZE);
    }

    final int tightness() {
        return tightness;
    }

    /** As {@link BlockChoice#tighten}. */
    final void tighten(int steps) {
        tightness = steps;
    }

    /** The coverage to ask for: what is left uncovered is halved by every second step of tightness. */
    final float asked(double coverage) {
        // At least a hair, for a coverage of 0 chooses nothing.
        return (float) Math.max(1e-6, 1 - (1 - coverage) * Math.pow(2, -tightness / 2.0));
    }

    /** Whether there is room for measurements. */
    final boolean senses() {
        return senseEvery > 0;
    }

    /** @throws IllegalStateException when there is no room for measurements */
    final void requireSensing() {
        if (!senses()) {
            throw new IllegalStateException("expected a pass opened to sense its coverage, found senseEvery=" + senseEvery);
        }
    }

    final Tensor constant(String name, float[] values, long... dims) {
        return buffers.constant(name, DType.F32, values, dims);
    }

    /** The part of what norms pool for predictors that a layer uses: [rows / poolRows, hidden]. */
    static Tensor pooled(Tensor flat, int rows, int poolRows, int hidden) {
        int pools = Math.ceilDiv(rows, poolRows);
        return flat.slice(0, 0, (long) pools * hidden).reshape(pools, hidden);
    }

    /**
     * Draws scores of blocks that are chosen by chance, in (0, 1] (a score of 0 is never chosen), and uploads them, for one layer
     * after another.
     *
     * @param mix what tells these draws from others by the same seed
     * @param staged host memory of a layer's scores
     * @param scores where a layer's go
     */
    final void draw(ModelPass.@Nullable DropoutSeed seed, long mix, Tensor staged, IntFunction<Tensor> scores) {
        SplittableRandom random = new SplittableRandom(
                mix ^ (seed == null ? 0 : seed.seed() ^ (seed.offset() + 1) * STEP_MIX));
        float[] values = new float[Math.toIntExact(staged.shape().size())];
        for (int layer = 0; layer < layers; layer++) {
            if (isSparse(layer)) {
                for (int i = 0; i < values.length; i++) {
                    values[i] = (float) (1 - random.nextDouble() * 0.999);
                }
                staged.copyFrom(values);
                backend.upload(staged, scores.apply(layer));
            }
        }
    }

    /**
     * The part of the masses' sum that lists hold; 1 where there is none. Waits.
     *
     * @param masses a row for each list, of all blocks
     * @param counts of each list
     * @param indices a row for each list, whose first {@code count} are its blocks
     */
    final double covered(Tensor masses, Tensor counts, Tensor indices) {
        float[] mass = backend.toFloats(masses);
        int[] count = backend.toInts(counts);
        int[] blocks = backend.toInts(indices);
        int massRow = mass.length / count.length;
        int blockRow = blocks.length / count.length;
        double all = 0;
        double covered = 0;
        for (float m : mass) {
            all += m;
        }
        for (int list = 0; list < count.length; list++) {
            for (int n = 0; n < count[list]; n++) {
                covered += mass[list * massRow + blocks[list * blockRow + n]];
            }
        }
        return all == 0 ? 1 : covered / all;
    }

    @Override
    public String toString() {
        long sparse = IntStream.range(0, layers).filter(this::isSparse).count();
        return "blocks to choose in " + sparse + " of " + layers + " layers";
    }
}
