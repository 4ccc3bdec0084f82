package dev.penumbra.model;

import static dev.penumbra.model.AdapterTerms.FC1;
import static dev.penumbra.model.AdapterTerms.FC2;

import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The MLPs of a pass, fc2(ReLU(fc1(x))): dense, or over the listed blocks of neurons.
 *
 * <p>fc2 is packed transposed, so that both weights have a row for each neuron: its forward product is the weight's backward
 * use, and the other way round.
 *
 * <p>Where the forward pass is sparse too, buffers have room for the lists' neurons only. What is dense all the same
 * (warm-up, evaluation) then goes through them in bands of rows, and an activation that an adapter on fc2 reads in the
 * backward pass is computed again.
 */
final class OptMlp {

    private final OptConfig config;
    private final OptWeights weights;
    private final AdapterTerms adapters;
    private final Buffers buffers;
    private final @Nullable MlpSelection selection;
    private final DType dtype;
    private final int capacity;

    /** Elements, of an activation that nobody keeps. */
    private final Tensor scratch;
    /** Elements, of an activation's gradient: the scratch itself where the activation has no reader left. */
    private final Tensor gradient;
    /** Elements, of the activations that a backward pass reads; null where none does. */
    private final @Nullable Tensor[] kept;
    /** Of a dense layer: as many as there is room for. */
    private final int bandRows;

    /** What a pass knows of the loaded batch and its layer's buffers. */
    interface Batch {
        int rows();

        /** i32 [1] on the device: rows of the batch that are no padding. */
        Tensor validRows();

        /** i32 [1] on the device: rows of a band that are no padding. */
        Tensor validRows(Band band);

        Tensor mask(int layer);

        LayerBuffers layer(int layer);
    }

    private final Batch batch;

    /** What reads a layer's activation, and what it does with it: the pass's observer, or a measurement. */
    @FunctionalInterface
    interface Look {
        void at(Band band, Tensor activation);
    }

    /**
     * @param lowest first layer that has a backward pass
     * @param wholeActivations whether somebody looks at a layer's whole activation at once
     */
    OptMlp(Opt model, AdapterTerms adapters, Buffers buffers, @Nullable MlpSelection selection, Batch batch, int capacity,
            int lowest, boolean training, boolean wholeActivations) {
        this.config = model.config();
        this.weights = model.weights();
        this.adapters = adapters;
        this.buffers = buffers;
        this.selection = selection;
        this.dtype = model.dtype();
        this.batch = batch;
        this.capacity = capacity;
        int layers = config.numHiddenLayers();
        boolean compact = selection != null && !selection.isBackwardOnly() && !selection.readsActivations()
                && !wholeActivations && selection.widest() > 0;
        bandRows = compact ? bandRows(selection) : capacity;
        long elements = (long) bandRows * config.ffnDim();
        if (compact) {
            elements = Math.max(elements, (long) capacity * selection.widest());
        }
        scratch = elements("scratch activation", elements);
        kept = new Tensor[layers];
        boolean anyKept = false;
        for (int i = lowest; i < layers && training; i++) {
            if (adapters.has(i, FC2)) {
                anyKept = true;
                boolean whole = selection == null || selection.isBackwardOnly() || !selection.isSparse(i);
                kept[i] = elements("layers." + i + ".activation",
                        (long) capacity * (whole ? config.ffnDim() : selection.width(i)));
            }
        }
        gradient = anyKept ? elements("d activation", elements) : scratch;
    }

    private Tensor elements(String name, long count) {
        return buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, name, dtype, count);
    }

    /** As many rows of all neurons as the lists' neurons of all rows need room for. */
    private int bandRows(MlpSelection lists) {
        long rows = (long) capacity * lists.widest() / config.ffnDim();
        int multiple = lists.bandMultiple();
        return Math.min(capacity, Math.toIntExact(Math.max(multiple, rows / multiple * multiple)));
    }

    /** Rows of a band; a batch of fewer is one band. */
    int bandRows() {
        return bandRows;
    }

    private List<Band> bands() {
        List<Band> bands = new ArrayList<>();
        for (int from = 0; from < batch.rows(); from += bandRows) {
            bands.add(new Band(bands.size(), from, Math.min(batch.rows(), from + bandRows)));
        }
        return bands;
    }

    private Band whole() {
        return new Band(0, 0, batch.rows());
    }

    private static Tensor matrix(Tensor elements, int rows, long columns) {
        return elements.slice(0, 0, rows * columns).reshape(rows, columns);
    }

    /** Where a dense layer's activation of a band lies. */
    private Tensor activation(int layer, Band band, boolean keeps) {
        return keeps
                ? band.of(matrix(kept[layer], batch.rows(), config.ffnDim()))
                : matrix(scratch, band.rows(), config.ffnDim());
    }

    private boolean isSparse(int layer, boolean sparse) {
        return sparse && selection != null && selection.isSparse(layer);
    }

    /** Whether an activation that the backward pass reads does not fit where it would be kept, and is computed again. */
    boolean recomputes(int layer, boolean sparse) {
        return kept[layer] != null && !isSparse(layer, sparse) && selection != null && !selection.isBackwardOnly()
                && selection.isSparse(layer);
    }

    /**
     * output = fc2(ReLU(fc1(input))) + residual.
     *
     * @param sparse whether only the blocks of lists are computed where there are some
     * @param look is shown a dense layer's activation; null: nobody is
     */
    void forward(int i, Tensor input, Tensor residual, Tensor output, boolean sparse, @Nullable Look look) {
        if (isSparse(i, sparse)) {
            if (!selection.readsActivations()) {
                selection.chooseBefore(i, batch.rows(), config.hiddenSize());
            }
            if (!selection.isBackwardOnly()) {
                sparseForward(i, input, residual, output);
                return;
            }
        }
        boolean keeps = kept[i] != null && !recomputes(i, sparse);
        for (Band band : bands()) {
            Tensor activation = activation(i, band, keeps);
            fc1(i, band, band.of(input), activation, null, true);
            if (look != null) {
                look.at(band, activation);
            }
            fc2(i, band, activation, band.of(residual), band.of(output), null);
        }
    }

    private void sparseForward(int i, Tensor input, Tensor residual, Tensor output) {
        Band whole = whole();
        int m = whole.rows();
        if (selection.readsActivations()) {
            Tensor activation = matrix(scratch, m, config.ffnDim());
            fc1(i, whole, input, activation, null, true);
            selection.chooseByActivation(i, activation, batch.validRows());
        }
        BlockList blocks = selection.list(i, m);
        Tensor compact = matrix(kept[i] == null ? scratch : kept[i], m, blocks.width());
        fc1(i, whole, input, compact, blocks, true);
        fc2(i, whole, compact, residual, output, blocks);
    }

    private void fc1(int i, Band band, Tensor input, Tensor activation, @Nullable BlockList blocks, boolean projects) {
        OptWeights.Linear w = weights.layers.get(i).fc1();
        List<LowRank> terms = projects
                ? adapters.project(i, FC1, input, batch.layer(i).h, band, null)
                : adapters.projected(i, FC1, batch.layer(i).h, band);
        buffers.run(Gemm.forward(input, w.weight(), activation).lowRank(terms).bias(w.bias())
                .relu(band.of(batch.mask(i))).blocks(blocks).workspace(buffers.workspace()).build());
    }

    private void fc2(int i, Band band, Tensor activation, Tensor residual, Tensor output, @Nullable BlockList blocks) {
        OptWeights.Linear w = weights.layers.get(i).fc2();
        List<LowRank> terms = adapters.project(i, FC2, activation, batch.layer(i).h, band, blocks);
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
    void backward(int i, AdapterInput input, Tensor dy, @Nullable Tensor residual, @Nullable Tensor dInput,
            boolean needsFc1, Tensor grad, boolean sparse) {
        if (isSparse(i, sparse)) {
            sparseBackward(i, input, dy, residual, dInput, needsFc1, grad);
            return;
        }
        boolean recomputes = recomputes(i, sparse);
        boolean keeps = kept[i] != null && !recomputes;
        for (Band band : bands()) {
            Tensor activation = activation(i, band, keeps);
            if (recomputes) {
                fc1(i, band, band.of(input.x()), activation, null, false);
            }
            backward(i, band, activation, input.of(band), band.of(dy), residual == null ? null : band.of(residual),
                    dInput == null ? null : band.of(dInput), needsFc1, grad, null, null);
        }
    }

    private void sparseBackward(int i, AdapterInput input, Tensor dy, @Nullable Tensor residual, @Nullable Tensor dInput,
            boolean needsFc1, Tensor grad) {
        Band whole = whole();
        if (selection.isBackwardOnly() && selection.readsActivations() && needsFc1) {
            selection.chooseByMask(i, whole.of(batch.mask(i)), batch.validRows());
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
        List<LowRank> terms = adapters.gradients(i, FC2, dy, new AdapterInput(activation, null), batch.layer(i).h, band,
                grad, ofActivation, null);
        if (!needsFc1) {
            return;
        }
        Tensor dActivation = matrix(gradient, band.rows(), blocks == null ? config.ffnDim() : blocks.width());
        buffers.run(Gemm.forward(dy, w.fc2().weight(), dActivation).lowRank(terms).drelu(band.of(batch.mask(i)))
                .blocks(blocks).workspace(buffers.workspace()).build());
        terms = adapters.gradients(i, FC1, dActivation, input, batch.layer(i).h, band, grad, null, blocks);
        if (dInput != null) {
            buffers.run(Gemm.backward(dActivation, w.fc1().weight(), dInput).lowRank(terms).residual(residual)
                    .blocks(blocks).workspace(buffers.workspace()).build());
        }
    }
}
