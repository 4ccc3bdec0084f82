package dev.penumbra.model;

import static dev.penumbra.model.AdapterTerms.FC1;
import static dev.penumbra.model.AdapterTerms.FC2;

import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.EnumSet;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The MLPs of a pass, fc2(ReLU(fc1(x))): dense, or over the listed blocks of neurons.
 *
 * <p>fc2 is packed transposed, so that both weights have a row for each neuron: its forward product is the weight's backward
 * use, and the other way round.
 *
 * <p>Where the forward pass is sparse too, buffers have room for the lists' neurons only. What is dense all the same
 * (warm-up, evaluation) then goes through them in bands of rows, and what the backward pass reads of fc1's output, ReLU's mask
 * and, with an adapter on fc2, the activation, is computed again: a dense training step of such a run has five products of the
 * size of an MLP's weights for four, and a norm more.
 */
final class OptMlp {

    private final OptConfig config;
    private final OptWeights weights;
    private final AdapterTerms adapters;
    private final GradientReach reach;
    private final Buffers buffers;
    private final OptActivations activations;
    private final ReluMasks masks;
    private final @Nullable MlpSelection selection;
    private final @Nullable MlpObserver observer;

    /** Elements, of an activation that nobody keeps. */
    private final Tensor scratch;
    /** Elements, of an activation's gradient: the scratch itself where the activation has no reader left. */
    private final Tensor gradient;
    /** Elements, of the activations that a backward pass reads; null where none does. */
    private final @Nullable Tensor[] kept;
    /** f32 [groups of rows, hidden], for the observer. */
    private final @Nullable Tensor observed;

    /** @param batch in bands of {@link #bandRows} */
    OptMlp(Opt model, AdapterTerms adapters, GradientReach reach, Buffers buffers, LoadedBatch batch,
            OptActivations activations, @Nullable MlpSelection selection, @Nullable MlpObserver observer) {
        this.config = model.config();
        this.weights = model.weights();
        this.adapters = adapters;
        this.reach = reach;
        this.buffers = buffers;
        this.activations = activations;
        this.masks = activations.reluMasks();
        this.selection = selection;
        this.observer = observer;
        int layers = config.numHiddenLayers();
        long capacity = batch.capacity();
        long elements = Math.max((long) batch.bandRows() * config.ffnDim(),
                selection == null ? 0 : capacity * selection.widest());
        scratch = buffers.passing(EnumSet.of(Stage.MLP, Stage.MLP_BACKWARD), model.dtype(), elements);
        kept = new Tensor[layers];
        boolean anyKept = false;
        for (int i = reach.lowest(); i < layers; i++) {
            if (adapters.has(i, FC2)) {
                anyKept = true;
                kept[i] = buffers.activations("layers." + i + ".activation", model.dtype(),
                        capacity * (isCompact(i) ? selection.width(i) : config.ffnDim()));
            }
        }
        gradient = anyKept ? buffers.passing(EnumSet.of(Stage.MLP_BACKWARD), model.dtype(), elements) : scratch;
        observed = observer == null || observer.poolRows() == 0
                ? null
                : buffers.activations("pooled for MLPs' observer", DType.F32,
                        Math.ceilDiv(batch.capacity(), observer.poolRows()), config.hiddenSize());
    }

    /**
     * Rows of a dense layer that are computed at a time; a batch of fewer is one band. Where buffers have room for the lists'
     * neurons only: as many rows of all neurons as that is.
     *
     * @param capacity rows of the largest batch
     * @param observer sees a layer's whole activation at once; null: nobody does
     */
    static int bandRows(@Nullable MlpSelection selection, OptConfig config, int capacity, @Nullable MlpObserver observer) {
        boolean compact = selection != null && !selection.isBackwardOnly() && !selection.readsActivations()
                && observer == null && selection.widest() > 0;
        if (!compact) {
            return capacity;
        }
        long rows = (long) capacity * selection.widest() / config.ffnDim();
        int multiple = selection.bandMultiple();
        return Math.min(capacity, Math.toIntExact(Math.max(multiple, rows / multiple * multiple)));
    }

    private static Tensor matrix(Tensor elements, int rows, long columns) {
        return elements.slice(0, 0, rows * columns).reshape(rows, columns);
    }

    /** Where a dense layer's activation of a band lies. */
    private Tensor activation(int layer, int rows, Band band, boolean keeps) {
        return keeps
                ? band.of(matrix(kept[layer], rows, config.ffnDim()))
                : matrix(scratch, band.rows(), config.ffnDim());
    }

    private boolean isSparse(int layer, Run run) {
        return run == Run.SPARSE && selection != null && selection.isSparse(layer);
    }

    /** Whether what a layer keeps of fc1's output has room for the lists' neurons only. */
    private boolean isCompact(int layer) {
        return selection != null && selection.isCompact(layer);
    }

    private boolean isSensed(Run run) {
        return run == Run.SENSING && selection != null && selection.senses();
    }

    /** Whether what the backward pass reads of fc1's output does not fit where it would be kept, and is computed again. */
    boolean recomputes(int layer, Run run) {
        return isCompact(layer) && !isSparse(layer, run)
                && (kept[layer] != null || masks.isCompact(layer) && reach.reachesFc1(layer));
    }

    /** What the norm before a layer's MLP is to pool; null: nothing. */
    @Nullable
    Pooling pooling(int layer, RowSet rows, Run run) {
        if (run == Run.SPARSE) {
            return selection == null
                    ? null
                    : selection.pooling(layer, rows.rows(), config.hiddenSize(), rows.validRows());
        }
        return observed == null ? null : new Pooling(observedRows(rows), observer.poolRows(), rows.validRows());
    }

    private Tensor observedRows(RowSet rows) {
        return observed.slice(0, 0, Math.ceilDiv(rows.rows(), observer.poolRows()));
    }

    /** output = fc2(ReLU(fc1(input))) + residual; of a run by lists, over the listed neurons where the forward pass is sparse. */
    void forward(int i, RowSet rows, Tensor input, Tensor residual, Tensor output, Run run) {
        if (isSparse(i, run)) {
            if (!selection.readsActivations()) {
                selection.chooseBefore(i, rows.rows(), config.hiddenSize());
            }
            if (!selection.isBackwardOnly()) {
                sparseForward(i, rows, input, residual, output);
                return;
            }
        }
        boolean keeps = kept[i] != null && !recomputes(i, run);
        if (isSensed(run)) {
            selection.beginSensing(i, rows.rows());
        }
        for (Band band : rows.bands()) {
            Tensor activation = activation(i, rows.rows(), band, keeps);
            fc1(i, band, band.of(input), activation, null, true);
            show(i, rows, band, input, activation, run);
            fc2(i, band, activation, band.of(residual), band.of(output), null);
        }
        if (isSensed(run)) {
            selection.endSensing(i, rows.rows());
        }
    }

    /** Shows a dense layer's activation to who looks: a measurement, or the pass's observer, who sees all rows as one band. */
    private void show(int i, RowSet rows, Band band, Tensor input, Tensor activation, Run run) {
        Tensor mask = masks.dense(i, band);
        if (isSensed(run)) {
            selection.sense(i, band, activation, mask, rows.validRows(band), rows.rows());
        }
        if (run == Run.DENSE && observer != null && !buffers.isPlanning()) {
            observer.afterFc1(i, input, observed == null ? null : observedRows(rows), activation, mask, rows.validRows());
        }
    }

    private void sparseForward(int i, RowSet rows, Tensor input, Tensor residual, Tensor output) {
        Band whole = rows.whole();
        int m = whole.rows();
        if (selection.readsActivations()) {
            Tensor activation = matrix(scratch, m, config.ffnDim());
            fc1(i, whole, input, activation, null, true);
            selection.chooseByActivation(i, activation, rows.validRows());
        }
        BlockList blocks = selection.list(i, m);
        Tensor compact = matrix(kept[i] == null ? scratch : kept[i], m, blocks.width());
        fc1(i, whole, input, compact, blocks, true);
        fc2(i, whole, compact, residual, output, blocks);
    }

    private void fc1(int i, Band band, Tensor input, Tensor activation, @Nullable BlockList blocks, boolean projects) {
        OptWeights.Linear w = weights.layers.get(i).fc1();
        List<LowRank> terms = projects
                ? adapters.project(i, FC1, input, activations.layer(i).h, band, null)
                : adapters.projected(i, FC1, activations.layer(i).h, band);
        Tensor mask = mask(i, band, blocks);
        buffers.run(Gemm.forward(input, w.weight(), activation).lowRank(terms).bias(w.bias()).relu(mask).blocks(blocks)
                .workspace(buffers.workspace()).build());
    }

    private Tensor mask(int i, Band band, @Nullable BlockList blocks) {
        return blocks == null ? masks.dense(i, band) : masks.listed(i, band);
    }

    private void fc2(int i, Band band, Tensor activation, Tensor residual, Tensor output, @Nullable BlockList blocks) {
        OptWeights.Linear w = weights.layers.get(i).fc2();
        List<LowRank> terms = adapters.project(i, FC2, activation, activations.layer(i).h, band, blocks);
        buffers.run(Gemm.backward(activation, w.weight(), output).lowRank(terms).bias(w.bias()).residual(residual)
                .blocks(blocks).workspace(buffers.workspace()).build());
    }

    /**
     * grad += the adapters' gradients; dInput = the input's gradient + residual.
     *
     * @param input whose rows are fc1's input itself where the layer {@link #recomputes}
     * @param dy of the output
     * @param residual null: none
     * @param dInput null: no layer needs it
     * @param needsFc1 whether fc1's output has a gradient that something reads
     */
    void backward(int i, RowSet rows, AdapterInput input, Tensor dy, @Nullable Tensor residual, @Nullable Tensor dInput,
            boolean needsFc1, Tensor grad, Run run) {
        if (isSparse(i, run)) {
            sparseBackward(i, rows, input, dy, residual, dInput, needsFc1, grad);
            return;
        }
        boolean recomputes = recomputes(i, run);
        boolean keeps = kept[i] != null && !recomputes;
        for (Band band : rows.bands()) {
            Tensor activation = activation(i, rows.rows(), band, keeps);
            if (recomputes) {
                fc1(i, band, band.of(input.x()), activation, null, false);
            }
            backward(i, band, activation, input.of(band), band.of(dy), residual == null ? null : band.of(residual),
                    dInput == null ? null : band.of(dInput), needsFc1, grad, null, null);
        }
    }

    private void sparseBackward(int i, RowSet rows, AdapterInput input, Tensor dy, @Nullable Tensor residual,
            @Nullable Tensor dInput, boolean needsFc1, Tensor grad) {
        Band whole = rows.whole();
        if (selection.isBackwardOnly() && selection.readsActivations() && needsFc1) {
            selection.chooseByMask(i, masks.dense(i, whole), rows.validRows());
        }
        BlockList blocks = selection.list(i, whole.rows());
        BlockList ofActivation = selection.isBackwardOnly() ? null : blocks;
        Tensor activation = matrix(kept[i] == null ? scratch : kept[i], whole.rows(),
                ofActivation == null ? config.ffnDim() : blocks.width());
        backward(i, whole, activation, input, dy, residual, dInput, needsFc1, grad, ofActivation, blocks);
    }

    /**
     * Of a band.
     *
     * @param ofActivation the activation's list, where it is compact
     * @param blocks which of the neurons get a gradient; null: all
     */
    private void backward(int i, Band band, Tensor activation, AdapterInput input, Tensor dy, @Nullable Tensor residual,
            @Nullable Tensor dInput, boolean needsFc1, Tensor grad, @Nullable BlockList ofActivation,
            @Nullable BlockList blocks) {
        OptWeights.Layer w = weights.layers.get(i);
        List<LowRank> terms = adapters.gradients(i, FC2, dy, new AdapterInput(activation, null), activations.layer(i).h,
                band,
                grad, ofActivation, null);
        if (!needsFc1) {
            return;
        }
        Tensor dActivation = matrix(gradient, band.rows(), blocks == null ? config.ffnDim() : blocks.width());
        buffers.run(Gemm.forward(dy, w.fc2().weight(), dActivation).lowRank(terms).drelu(mask(i, band, blocks))
                .blocks(blocks).workspace(buffers.workspace()).build());
        terms = adapters.gradients(i, FC1, dActivation, input, activations.layer(i).h, band, grad, null, blocks);
        if (dInput != null) {
            buffers.run(Gemm.backward(dActivation, w.fc1().weight(), dInput).lowRank(terms).residual(residual)
                    .blocks(blocks).workspace(buffers.workspace()).build());
        }
    }
}
