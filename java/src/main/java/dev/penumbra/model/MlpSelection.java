package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.backend.op.PredictMass;
import dev.penumbra.backend.op.RelativeMass;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.function.IntUnaryOperator;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Which blocks of neurons each MLP of a pass computes: the lists, on the device, and what they are chosen by. A choice is
 * one or two operations; nothing here reads the device, but {@link #coverage}.
 */
final class MlpSelection extends BlockSelection {

    /** Long Exposure's rule drops a block when this part of its neurons ... */
    private static final float SEED_SHARE = 0.9f;
    /** ... lies below this part of the block's largest. */
    private static final float SEED_THRESHOLD = 0.05f;

    private final MlpSparsity sparsity;
    private final SparsityConfig config;
    private final int blocks;
    /** At least the pass's rows where the whole batch shares a list. */
    private final int rowsPerList;
    private final int capacityRows;
    private final LayerState[] layers;
    private final Tensor scores;
    private final @Nullable Tensor neuronMass;
    private final @Nullable Tensor pooled;
    private final @Nullable Tensor stagedScores;

    /** One layer's, on the device. */
    private static final class LayerState {
        private final MlpSparsity.Layer given;
        private final Tensor indices;
        private final Tensor counts;
        private @Nullable Tensor scores;
        private @Nullable Tensor norms;
        private @Nullable Tensor a;
        private @Nullable Tensor b;
        private @Nullable Tensor bias;
        private @Nullable Tensor unitNorms;
        private @Nullable Tensor sensed;

        LayerState(MlpSparsity.Layer given, Tensor indices, Tensor counts) {
            this.given = given;
            this.indices = indices;
            this.counts = counts;
        }
    }

    /**
     * @param capacityRows rows of the largest batch
     * @param firstGradient layers before it have no backward pass
     */
    MlpSelection(MlpSparsity sparsity, Backend backend, Buffers buffers, int capacityRows, int hidden, int firstGradient) {
        super(backend, buffers, "block", sparsity.layers().size(), sparsity.config().pass(), sparsity.config().senseEvery());
        this.sparsity = sparsity;
        this.config = sparsity.config();
        this.capacityRows = capacityRows;
        blocks = sparsity.blocks();
        // Scores that are the same for all tokens make one list.
        boolean oneList = config.rowsPerList() == 0 || config.policy() == SelectionPolicy.ALL
                || config.policy() == SelectionPolicy.STATIC;
        rowsPerList = oneList ? capacityRows : config.rowsPerList();
        int lists = lists(capacityRows);
        scores = buffers.activations("block scores", DType.F32, (long) lists * blocks);
        layers = new LayerState[layers()];
        int pooledRows = 0;
        for (int i = 0; i < layers(); i++) {
            if (!sparsity.isDense(i) && !(isBackwardOnly() && i < firstGradient)) {
                layers[i] = state(i, lists);
                LowRankPredictor predictor = sparsity.layers().get(i).predictor();
                pooledRows = Math.max(pooledRows,
                        predictor == null ? 0 : Math.ceilDiv(capacityRows, predictor.poolRows()));
            }
        }
        pooled = pooledRows == 0 ? null : buffers.passing(EnumSet.of(Stage.MLP), DType.F32, (long) pooledRows * hidden);
        neuronMass = config.policy() == SelectionPolicy.SEED || senses()
                ? buffers.activations("neuron mass", DType.F32, sparsity.neurons())
                : null;
        stagedScores = config.policy() == SelectionPolicy.RANDOM
                ? buffers.stage("staged scores", DType.F32, (long) lists * blocks)
                : null;
    }

    private LayerState state(int i, int lists) {
        MlpSparsity.Layer given = sparsity.layers().get(i);
        String at = "layers." + i + ".";
        LayerState state = new LayerState(given,
                buffers.activations(at + "blocks", DType.I32, lists, given.capacity()),
                buffers.activations(at + "block counts", DType.I32, lists));
        switch (config.policy()) {
            case ALL -> state.scores = constant(at + "block scores", ones(blocks), 1, blocks);
            case STATIC -> state.scores = constant(at + "block scores", required(i, "scores", given.scores()), 1, blocks);
            case RANDOM -> state.scores = buffers.activations(at + "block scores", DType.F32, (long) lists * blocks);
            case PREDICTED, LOW_RANK -> {
                LowRankPredictor p = given.predictor();
                if (p == null) {
                    throw new ModelException("layer " + i + ": expected a predictor for " + config.policy().word()
                            + " blocks, found none");
                }
                state.a = constant(at + "predictor.a", p.a(), p.rank(), p.hidden());
                state.b = constant(at + "predictor.b", p.b(), p.units(), p.rank());
                state.bias = p.bias() == null ? null : constant(at + "predictor.bias", p.bias(), p.units());
                state.unitNorms = p.norms() == null ? null : constant(at + "predictor.norms", p.norms(), p.units());
            }
            default -> {
            }
        }
        float[] norms = isBackwardOnly() ? given.gradientNorms() : given.activationNorms();
        if (norms != null && (config.policy().readsActivations() || senses())) {
            state.norms = constant(at + "neuron norms", norms, norms.length);
        }
        if (senses()) {
            state.sensed = buffers.activations(at + "true mass", DType.F32, (long) lists * blocks);
        }
        return state;
    }

    private static float[] required(int layer, String name, float @Nullable [] values) {
        if (values == null) {
            throw new ModelException("layer " + layer + ": expected " + name + " of its blocks, found none");
        }
        return values;
    }

    private static float[] ones(int count) {
        float[] ones = new float[count];
        Arrays.fill(ones, 1);
        return ones;
    }

    @Override
    boolean isSparse(int layer) {
        return layers[layer] != null;
    }

    /** Whether lists are made from what a layer computes, not before it runs. */
    boolean readsActivations() {
        return config.policy().readsActivations();
    }

    /** Whether what a layer writes by lists has no room for all neurons. */
    boolean isCompact(int layer) {
        return isSparse(layer) && !isBackwardOnly() && width(layer) < sparsity.neurons();
    }

    /** Whether {@link #isCompact} holds of some layer. */
    boolean hasCompact() {
        return IntStream.range(0, layers()).anyMatch(this::isCompact);
    }

    /** Columns of a layer's compact activation. */
    int width(int layer) {
        return layers[layer].given.capacity() * config.blockSize();
    }

    /** The largest of {@link #width}; 0 where no layer has blocks to choose. */
    int widest() {
        int widest = 0;
        for (int i = 0; i < layers.length; i++) {
            widest = isSparse(i) ? Math.max(widest, width(i)) : widest;
        }
        return widest;
    }

    private int lists(int rows) {
        return Math.ceilDiv(rows, rowsPerList);
    }

    /** A layer's list for a batch of {@code m} rows. */
    BlockList list(int layer, int m) {
        LayerState state = layers[layer];
        int lists = lists(m);
        return new BlockList(state.indices.slice(0, 0, lists), state.counts.slice(0, 0, lists), config.blockSize(),
                rowsPerList);
    }

    /** What the norm before a layer is to pool; null: nothing. */
    @Nullable
    Pooling pooling(int layer, int m, int hidden, Tensor validRows) {
        if (pooled == null || !isSparse(layer)) {
            return null;
        }
        int rows = layers[layer].given.predictor().poolRows();
        return new Pooling(pooled(pooled, m, rows, hidden), rows, validRows);
    }

    private Tensor scoresOf(Tensor flat, int m) {
        return flat.slice(0, 0, (long) lists(m) * blocks).reshape(lists(m), blocks);
    }

    /** Chooses by scores that are there before the layer runs: given ones, or those of its predictor. */
    void chooseBefore(int layer, int m, int hidden) {
        LayerState state = layers[layer];
        if (state.a == null) {
            select(layer, m, config.policy() == SelectionPolicy.RANDOM ? scoresOf(state.scores, m) : state.scores);
            return;
        }
        LowRankPredictor p = state.given.predictor();
        Tensor target = scoresOf(scores, m);
        buffers.run(new PredictMass(pooled(pooled, m, p.poolRows(), hidden), state.a, state.b, state.bias, state.unitNorms,
                p.unitsPerScore(), Math.ceilDiv(rowsPerList, p.poolRows()), target, buffers.workspace()));
        select(layer, m, target);
    }

    /** Chooses by what the layer computes. */
    void chooseByActivation(int layer, Tensor activation, Tensor validRows) {
        chooseByUse(layer, activation, null, validRows);
    }

    /** Chooses by which neurons fired. */
    void chooseByMask(int layer, Tensor reluMask, Tensor validRows) {
        chooseByUse(layer, null, reluMask, validRows);
    }

    private void chooseByUse(int layer, @Nullable Tensor activation, @Nullable Tensor mask, Tensor validRows) {
        LayerState state = layers[layer];
        int m = Math.toIntExact((activation == null ? mask : activation).shape().dim(0));
        Tensor target = scoresOf(scores, m);
        if (config.policy() == SelectionPolicy.SEED) {
            buffers.run(new Fill(0, neuronMass));
            buffers.run(new ActivationMass(activation, mask, state.norms, validRows, config.blockSize(), rowsPerList, null,
                    neuronMass, null, buffers.workspace()));
            buffers.run(new RelativeMass(neuronMass, config.blockSize(), SEED_THRESHOLD, SEED_SHARE, target));
        } else {
            buffers.run(new ActivationMass(activation, mask, state.norms, validRows, config.blockSize(), rowsPerList, target,
                    null, null, buffers.workspace()));
        }
        select(layer, m, target);
    }

    private void select(int layer, int m, Tensor by) {
        LayerState state = layers[layer];
        buffers.run(new SelectBlocks(by, asked(state.given.coverage()), list(layer, m), summary(layer)));
    }

    /** Draws and uploads the scores of random blocks, where the policy has them. */
    void draw(ModelPass.@Nullable DropoutSeed seed) {
        if (stagedScores == null) {
            return;
        }
        draw(seed, 0, stagedScores, layer -> layers[layer].scores);
    }

    /** Prepares the measurement of a layer's true mass, band by band. */
    void beginSensing(int layer, int m) {
        if (isSparse(layer) && lists(m) == 1) {
            buffers.run(new Fill(0, neuronMass));
        }
    }

    /** Measures a band: its activation, or, where only the backward pass is sparse, which of its neurons fire. */
    void sense(int layer, Band band, Tensor activation, Tensor mask, Tensor validRows, int m) {
        if (!isSparse(layer)) {
            return;
        }
        LayerState state = layers[layer];
        Tensor x = isBackwardOnly() ? null : activation;
        Tensor bits = isBackwardOnly() ? mask : null;
        boolean whole = lists(m) == 1;
        Tensor part = null;
        if (!whole) {
            // A band holds whole lists.
            int first = band.from() / rowsPerList;
            int end = Math.ceilDiv(band.to(), rowsPerList);
            part = state.sensed.slice(0, (long) first * blocks, (long) end * blocks).reshape(end - first, blocks);
        }
        buffers.run(new ActivationMass(x, bits, state.norms, validRows, config.blockSize(), rowsPerList, part,
                whole ? neuronMass : null, null, buffers.workspace()));
    }

    void endSensing(int layer, int m) {
        if (isSparse(layer) && lists(m) == 1) {
            // With a threshold of 0 no neuron lies below it: plain sums.
            buffers.run(new RelativeMass(neuronMass, config.blockSize(), 0, 1, scoresOf(layers[layer].sensed, m)));
        }
    }

    /** Rows that a band must be a multiple of. */
    int bandMultiple() {
        return senses() && lists(capacityRows) > 1
                ? rowsPerList
                : PassShape.ROW_BLOCK;
    }

    /**
     * The part of the mass that was sensed last that the lists made since hold, by layer; 1 in dense layers. Waits.
     *
     * @param rows of the loaded batch that a layer computes
     */
    double[] coverage(IntUnaryOperator rows) {
        double[] coverage = new double[layers()];
        Arrays.setAll(coverage, i -> isSparse(i) ? coverage(i, rows.applyAsInt(i)) : 1);
        return coverage;
    }

    private double coverage(int layer, int m) {
        BlockList list = list(layer, m);
        return covered(scoresOf(layers[layer].sensed, m), list.counts(), list.indices());
    }
}
