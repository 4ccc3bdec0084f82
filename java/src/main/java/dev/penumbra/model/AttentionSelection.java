package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.IdentityHashMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * Which blocks of keys the heads of a pass attend to: the lists, on the device, and what they are chosen by. Nothing here
 * reads the device, but {@link #coverage}.
 *
 * <p>Lists have room for as many samples as there are blocks. A batch of more, which are shorter than a block on average, is
 * computed without lists, and so is one whose samples are all short: there is nothing to skip.
 */
final class AttentionSelection extends BlockSelection {

    /** Queries from one that true masses are taken of to the next: on a device that waits for nobody they cost what they read. */
    private static final int DEVICE_QUERY_STRIDE = 16;
    /** Where masses are cheap beside what they save, more of the queries are asked: a quarter of one of seven products. */
    private static final int HOST_QUERY_STRIDE = 4;
    /** Unlike what MLPs draw from the same seed. */
    private static final long ATTENTION_MIX = 0xD1B54A32D192ED03L;

    private final AttentionSparsity sparsity;
    private final AttentionConfig config;
    private final LoadedBatch batch;
    private final int heads;
    private final int width;
    private final int slotCapacity;
    private final int mostSamples;
    private final float scale;
    private final LayerState[] layers;
    /** What a layer whose lists nobody made has kept, covered and cut. */
    private final Tensor stagedAll;
    private final @Nullable Tensor mass;
    private final @Nullable Tensor pooled;
    private final int hidden;
    private final boolean normBeforeFirst;
    private final @Nullable Tensor stagedTable;
    private final Map<float[], Tensor> tables = new IdentityHashMap<>();
    private boolean active;

    /** Room for one layer's lists. */
    private record Lists(Tensor indices, Tensor counts, Tensor transposedIndices, Tensor transposedCounts, Tensor order) {
    }

    /** One layer's, on the device. */
    private static final class LayerState {
        private final AttentionSparsity.Layer given;
        private final Lists lists;
        private @Nullable Tensor budgets;
        private @Nullable Tensor table;
        private @Nullable Tensor a;
        private @Nullable Tensor bias;
        private @Nullable Tensor distance;
        private @Nullable Tensor sensed;

        LayerState(AttentionSparsity.Layer given, Lists lists) {
            this.given = given;
            this.lists = lists;
        }
    }

    /**
     * @param batch what is loaded, whenever lists are made
     * @param firstGradient layers before it have no backward pass through their attention
     */
    AttentionSelection(AttentionSparsity sparsity, Backend backend, Buffers buffers, LoadedBatch batch, PassShape shape,
            OptConfig model, int firstGradient) {
        super(backend, buffers, "attention", sparsity.layers().size(), sparsity.config().pass(),
                sparsity.config().senseEvery());
        this.sparsity = sparsity;
        this.config = sparsity.config();
        this.batch = batch;
        heads = sparsity.heads();
        hidden = model.hiddenSize();
        normBeforeFirst = model.doLayerNormBefore();
        scale = model.attentionScale();
        width = sparsity.width();
        if (heads != model.numAttentionHeads() || layers() != model.numHiddenLayers()) {
            throw new ModelException("expected sparse attention of " + model.numHiddenLayers() + " layers of "
                    + model.numAttentionHeads() + " heads, found " + layers() + " of " + heads);
        }
        if ((long) width * config.blockSize() < shape.maxSeqlen()) {
            throw new ModelException("expected lists of attention blocks for samples of up to " + shape.maxSeqlen()
                    + " tokens, found room for " + width + " blocks of " + config.blockSize());
        }
        int capacity = shape.capacity();
        mostSamples = mostSamples(capacity, config.blockSize());
        slotCapacity = Math.toIntExact(AttentionBlocks.slots(capacity, mostSamples, config.blockSize()));
        stagedAll = buffers.stage("staged attention summaries", DType.F32, layers(), SelectBlocks.SUMMARY_SIZE);
        layers = new LayerState[layers()];
        Lists shared = null;
        int pooledRows = 0;
        boolean anyMass = false;
        for (int i = 0; i < layers(); i++) {
            if (sparsity.isDense(i) || isBackwardOnly() && i < firstGradient) {
                continue;
            }
            if (!keepsLists(i, firstGradient) && shared == null) {
                shared = lists("shared ");
            }
            layers[i] = state(i, keepsLists(i, firstGradient) ? lists("layers." + i + ".") : shared);
            AttentionPredictor predictor = layers[i].given.predictor();
            pooledRows = Math.max(pooledRows,
                    predictor == null ? 0 : Math.ceilDiv(capacity, predictor.poolRows()));
            anyMass |= config.policy().readsScores() || predictor != null;
        }
        mass = anyMass ? masses("attention mass") : null;
        pooled = pooledRows == 0
                ? null
                : buffers.passing(
                        // Where no norm comes before the attention, the one that ends the layer below pools for it.
                        normBeforeFirst ? EnumSet.of(Stage.ATTENTION) : EnumSet.of(Stage.MLP, Stage.ATTENTION), DType.F32,
                        (long) pooledRows * hidden);
        stagedTable = config.policy() == AttentionPolicy.RANDOM
                ? buffers.stage("staged attention table", DType.F32, heads, width, width)
                : null;
        if (!buffers.isPlanning()) {
            float[] all = new float[layers() * SelectBlocks.SUMMARY_SIZE];
            for (int i = 0; i < layers(); i++) {
                all[i * SelectBlocks.SUMMARY_SIZE] = 1;
                all[i * SelectBlocks.SUMMARY_SIZE + 1] = 1;
            }
            stagedAll.copyFrom(all);
        }
    }

    /** One sample a block, and as many as batches are told apart by. */
    private static int mostSamples(int capacity, int blockSize) {
        int blocks = Math.ceilDiv(capacity, blockSize);
        return Math.ceilDiv(blocks, LoadedBatch.SIGNATURE_SAMPLES) * LoadedBatch.SIGNATURE_SAMPLES;
    }

    /** Whether a layer's lists are read after another layer's are made. */
    private boolean keepsLists(int layer, int firstGradient) {
        boolean madeInForward = !isBackwardOnly() || sparsity.layers().get(layer).predictor() != null;
        return senses() || madeInForward && layer >= firstGradient;
    }

    private Lists lists(String at) {
        long rows = (long) heads * slotCapacity;
        return new Lists(
                buffers.activations(at + "attention blocks", DType.I32, rows * width),
                buffers.activations(at + "attention block counts", DType.I32, rows),
                buffers.activations(at + "transposed attention blocks", DType.I32, rows * width),
                buffers.activations(at + "transposed attention block counts", DType.I32, rows),
                buffers.activations(at + "order of attention blocks", DType.I32, 2 * rows));
    }

    private Tensor masses(String name) {
        return buffers.activations(name, DType.F32, (long) heads * slotCapacity * width);
    }

    private LayerState state(int i, Lists lists) {
        AttentionSparsity.Layer given = sparsity.layers().get(i);
        String at = "layers." + i + ".";
        LayerState state = new LayerState(given, lists);
        if (given.budgets() != null) {
            state.budgets = constant(at + "attention budgets", given.budgets(), heads);
        }
        switch (config.policy()) {
            case ALL, STATIC, BIGBIRD, LONGFORMER -> state.table = table(i, given);
            case RANDOM -> state.table = buffers.activations(at + "attention table", DType.F32, heads, width, width);
            case PREDICTED -> {
                AttentionPredictor p = given.predictor();
                if (p == null) {
                    throw new ModelException("layer " + i + ": expected a predictor of attention, found none");
                }
                if (i == 0 && !normBeforeFirst) {
                    throw new ModelException("layer 0: expected no predicted attention where no norm comes before it");
                }
                state.a = buffers.constant(at + "attention predictor.a", DType.BF16, p.a(), 2, heads, p.rank(), p.hidden());
                state.bias = constant(at + "attention predictor.bias", p.bias(), 2, heads, p.rank());
                state.distance = constant(at + "attention predictor.distance", columns(p.distance(), p.width()), heads,
                        width);
            }
            default -> {
            }
        }
        if (senses()) {
            state.sensed = masses(at + "true attention mass");
        }
        return state;
    }

    /** Layers of equal tables share one. */
    private Tensor table(int i, AttentionSparsity.Layer given) {
        float[] values = given.table();
        if (values == null) {
            throw new ModelException("layer " + i + ": expected a table of its attention blocks' masses, found none");
        }
        return tables.computeIfAbsent(values,
                table -> constant("layers." + i + ".attention table", table, heads, width, width));
    }

    /** The first {@link #width} columns of [heads, columns]. */
    private float[] columns(float[] values, int columns) {
        float[] first = new float[heads * width];
        for (int h = 0; h < heads; h++) {
            System.arraycopy(values, h * columns, first, h * width, width);
        }
        return first;
    }

    @Override
    boolean isSparse(int layer) {
        return layers[layer] != null;
    }

    /** Most samples of a batch that lists are made for. */
    int mostSamples() {
        return mostSamples;
    }

    /** Decides whether lists are made for the batch that was loaded; else all of it is computed. */
    void begin(int samples) {
        long longest = batch.maxSeqlen();
        active = samples <= mostSamples && longest > config.blockSize() && longest <= (long) width * config.blockSize();
    }

    /** Whether the loaded batch has lists. */
    boolean isActive() {
        return active;
    }

    /** Uploads what lists are drawn from, or what is told of a batch without any. */
    void prepare(ModelPass.@Nullable DropoutSeed seed) {
        if (!active) {
            backend.upload(stagedAll, summaries());
        } else if (stagedTable != null) {
            draw(seed, ATTENTION_MIX, stagedTable, layer -> layers[layer].table);
        }
    }

    private int slots() {
        return Math.toIntExact(AttentionBlocks.slots(batch.rows(), batch.borders().shape().size() - 1, config.blockSize()));
    }

    private Tensor masses(Tensor flat) {
        int slots = slots();
        return flat.slice(0, 0, (long) heads * slots * width).reshape(heads, slots, width);
    }

    /** A layer's lists for the loaded batch. */
    AttentionBlocks blocks(int layer) {
        Lists lists = layers[layer].lists;
        int slots = slots();
        long rows = (long) heads * slots;
        return new AttentionBlocks(
                lists.indices.slice(0, 0, rows * width).reshape(heads, slots, width),
                lists.counts.slice(0, 0, rows).reshape(heads, slots),
                lists.transposedIndices.slice(0, 0, rows * width).reshape(heads, slots, width),
                lists.transposedCounts.slice(0, 0, rows).reshape(heads, slots),
                lists.order.slice(0, 0, 2 * rows).reshape(2, rows), config.blockSize());
    }

    /** What the norm before a layer's queries and keys is to pool; null: nothing. */
    @Nullable
    Pooling pooling(int layer) {
        if (pooled == null || !active || !isSparse(layer)) {
            return null;
        }
        int rows = layers[layer].given.predictor().poolRows();
        return new Pooling(pooled(pooled, batch.rows(), rows, hidden), rows, batch.validRows());
    }

    /** Whether a layer's lists are made by what the norm before it pools. */
    boolean isPredicted() {
        return config.policy() == AttentionPolicy.PREDICTED;
    }

    /** Whether lists are made by the true scores. */
    boolean readsScores() {
        return config.policy().readsScores();
    }

    /** Chooses by masses that are there before the layer's scores: those of a table, or of a predictor. */
    void chooseBefore(int layer) {
        LayerState state = layers[layer];
        if (state.a == null) {
            select(layer, null, state.table);
            return;
        }
        int poolRows = state.given.predictor().poolRows();
        Tensor target = masses(mass);
        buffers.run(new PredictAttention(pooled(pooled, batch.rows(), poolRows, hidden), poolRows, state.a, state.bias,
                state.distance, batch.borders(), batch.rows(), batch.maxSeqlen(), config.blockSize(), target,
                buffers.workspace()));
        select(layer, target, null);
    }

    /**
     * Chooses by the true masses.
     *
     * @param lse of an exact forward pass
     */
    void chooseByScores(int layer, Tensor q, Tensor k, Tensor lse) {
        // What skips in the forward pass is the ideal that others are measured against: of all queries.
        int stride = !isBackwardOnly() ? 1 : backend.isAsynchronous() ? DEVICE_QUERY_STRIDE : HOST_QUERY_STRIDE;
        Tensor target = masses(mass);
        mass(q, k, lse, stride, target);
        select(layer, target, null);
    }

    private void mass(Tensor q, Tensor k, Tensor lse, int stride, Tensor target) {
        buffers.run(new AttentionMass(scale, q, k, lse, batch.borders(), batch.maxSeqlen(), config.blockSize(), stride,
                target));
    }

    private void select(int layer, @Nullable Tensor by, @Nullable Tensor table) {
        LayerState state = layers[layer];
        buffers.run(new SelectAttention(by, table, state.budgets, asked(state.given.coverage()),
                batch.borders(), batch.rows(), batch.maxSeqlen(), blocks(layer), summary(layer), buffers.workspace()));
    }

    /** Keeps a layer's true masses of the loaded batch. */
    void sense(int layer, Tensor q, Tensor k, Tensor lse) {
        if (senses() && active && isSparse(layer)) {
            mass(q, k, lse, 1, masses(layers[layer].sensed));
        }
    }

    /** The part of the mass that was sensed last that the lists made since hold, by layer; 1 in dense layers. Waits. */
    double[] coverage() {
        double[] coverage = new double[layers()];
        Arrays.setAll(coverage, i -> active && isSparse(i) ? coverage(i) : 1);
        return coverage;
    }

    private double coverage(int layer) {
        AttentionBlocks lists = blocks(layer);
        return covered(masses(layers[layer].sensed), lists.counts(), lists.indices());
    }
}
