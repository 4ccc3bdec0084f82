package dev.penumbra.model;

import dev.penumbra.data.Batch;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.function.BooleanSupplier;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * OPT's forward pass and the backward pass derived from it by hand: embedding, layers of two sublayers each, head.
 *
 * <p>Gradients flow through frozen weights only as far down as the lowest adapter: layers below it share one set of buffers,
 * and of the lowest layer only the part above its lowest adapter is computed.
 */
final class OptPass implements ModelPass {

    private final OptConfig config;
    private final PassShape shape;
    private final boolean lossOnly;
    private final Buffers buffers;
    private final LoadedBatch batch;
    private final AdapterTerms adapters;
    private final GradientReach reach;
    private final @Nullable MlpSelection selection;
    private final @Nullable AttentionSelection attentionSelection;
    private final Offload offload;
    private final OptActivations activations;
    private final OptEmbedding embedding;
    private final OptAttentionSublayer attention;
    private final OptMlpSublayer mlp;
    private final OptHead head;
    private Mode mode = Mode.DENSE;
    /** Whether the head's input is that of the loaded batch: the backward pass writes over it. */
    private boolean hasHeadInput;

    OptPass(Opt model, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options, Buffers buffers) {
        if (shape.training() && adapter == null) {
            throw new IllegalArgumentException("expected an adapter to train, found none");
        }
        this.shape = shape;
        lossOnly = options.lossOnly();
        this.buffers = buffers;
        config = model.config();
        int capacity = shape.capacity();
        boolean training = shape.training();
        int lowest = training ? adapter.sites().getFirst().layer().layer() : config.numHiddenLayers();
        // Before all that lives within some stages: the head's, which needs most, then has no gap in front of it.
        Tensor dX = !training
                ? null
                : buffers.passing(EnumSet.of(Stage.HEAD, Stage.MLP_BACKWARD, Stage.ATTENTION_BACKWARD), model.dtype(),
                        capacity, config.hiddenSize());
        adapters = new AdapterTerms(model.backend(), buffers, adapter, capacity, training);
        reach = new GradientReach(adapters, lowest);
        selection = options.sparsity() == null || options.sparsity().config().isOff()
                ? null
                : new MlpSelection(options.sparsity(), model.backend(), buffers, capacity, config.hiddenSize(),
                        reach.first(reach::reachesFc1));
        int bandRows = OptMlp.bandRows(selection, config, capacity, options.observer());
        batch = new LoadedBatch(model.backend(), buffers, shape, config, options.lossOnly(), bandRows);
        attentionSelection = options.attention() == null || options.attention().config().policy().isDense()
                ? null
                : new AttentionSelection(options.attention(), model.backend(), buffers, batch, shape, config,
                        reach.first(reach::reachesQkv));
        offload = new Offload(lowest, config.numHiddenLayers(), training ? options.offloaded() : 0,
                model.backend().isAsynchronous() && !hasLists()
                        ? Offload.hidden(config.hiddenSize(), config.numHiddenLayers() - lowest)
                        : 0);
        activations = new OptActivations(model, adapter, buffers, shape, lowest,
                selection != null && selection.hasCompact(),
                new ReluMasks(buffers, config, shape, lowest, selection, bandRows), options.lossOnly(), offload, dX);
        offload.allocate(buffers, this::offloaded);
        PassOps ops = new PassOps(buffers);
        embedding = new OptEmbedding(model, buffers, batch, ops);
        OptAttention heads = new OptAttention(config, buffers, batch, attentionSelection, options.attentionObserver());
        attention = new OptAttentionSublayer(model, adapters, reach, activations, batch, ops, heads);
        OptMlp neurons = new OptMlp(model, adapters, reach, buffers, batch, activations, selection, options.observer());
        mlp = new OptMlpSublayer(model, reach, activations, ops, neurons, heads);
        head = new OptHead(model, buffers, batch, ops, activations.output(activations.layers() - 1), training);
    }

    /** Plans a pass; returns the bytes that its stages share, which its buffers are to be allocated with. */
    static long plan(Opt model, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options,
            MemoryPlan plan) {
        Buffers planning = Buffers.planning(model.backend(), plan);
        OptPass pass = new OptPass(model, adapter, shape, options, planning);
        Tensor scalar = Tensor.planned(DType.F32, Shape.of(1));
        Tensor grad = shape.training() ? Tensor.planned(DType.F32, adapter.parameters().shape()) : null;
        pass.batch.describeLargest();
        for (Mode mode : pass.hasLists() ? Mode.values() : new Mode[]{Mode.DENSE}) {
            pass.mode = mode;
            if (mode == Mode.SPARSE && pass.attentionSelection != null) {
                // Most lists: what makes them needs most then.
                pass.batch.describeSamples(pass.attentionSelection.mostSamples());
                pass.attentionSelection.begin(pass.batch.samples());
            }
            // Adapters of one input share a pass over it, but not where each drops something else: either may need more.
            for (boolean dropout : new boolean[]{false, true}) {
                pass.adapters.describe(dropout);
                pass.forward(mode == Mode.DENSE && pass.senses() ? Run.SENSING : pass.run());
                pass.addLoss(scalar);
                if (!options.lossOnly()) {
                    pass.logits(Tensor.planned(DType.F32, Shape.of(shape.capacity(), model.vocabSize())));
                }
                if (shape.training()) {
                    pass.addLossAndGradients(scalar, scalar, grad);
                }
            }
        }
        long shared = planning.sharedBytes();
        plan.add(MemoryPlan.Kind.WORKSPACE, "of a stage at a time", shared);
        return shared;
    }

    private boolean hasLists() {
        return selection != null || attentionSelection != null;
    }

    private boolean senses() {
        return selection != null && selection.senses() || attentionSelection != null && attentionSelection.senses();
    }

    @Override
    public void load(Batch given, @Nullable DropoutSeed dropout, Mode wanted) {
        if (wanted == Mode.SPARSE && !hasLists()) {
            throw new IllegalStateException("expected a pass that was opened to choose blocks, found a dense one");
        }
        mode = wanted;
        hasHeadInput = false;
        batch.load(given);
        if (mode == Mode.SPARSE && selection != null) {
            selection.draw(dropout);
        }
        if (mode == Mode.SPARSE && attentionSelection != null) {
            attentionSelection.begin(batch.samples());
            attentionSelection.prepare(dropout);
        }
        adapters.load(dropout);
    }

    /**
     * @param computed rows from the last layer's attention on
     * @param dropping whether dropout is drawn; its seed lies on the device
     * @param tightness what is asked of lists beyond their layers' coverage
     * @param attentionLists whether heads attend by lists
     */
    private record Signature(int tokens, int computed, int supervised, int samples, long maxSeqlen, boolean dropping,
            Mode mode, int tightness, boolean attentionLists, int attentionTightness) {
    }

    @Override
    public Object signature() {
        boolean sparse = mode == Mode.SPARSE;
        boolean lists = sparse && attentionSelection != null && attentionSelection.isActive();
        return new Signature(batch.rows(), batch.judged().rows(), batch.supervised(), batch.samples(), batch.maxSeqlen(),
                adapters.isDropping(), mode, sparse && selection != null ? selection.tightness() : 0, lists,
                lists ? attentionSelection.tightness() : 0);
    }

    /** How the loaded batch is computed. */
    private Run run() {
        return mode == Mode.SPARSE ? Run.SPARSE : Run.DENSE;
    }

    @Override
    public void forward() {
        forward(run());
    }

    private void forward(Run run) {
        batch.requireLoaded();
        buffers.begin(Stage.EMBEDDING);
        embedding.forward(batch.of(activations.input(0)));
        for (int i = 0; i < activations.layers(); i++) {
            offload.beforeForward(i);
            buffers.begin(Stage.ATTENTION);
            attention.forward(i, rowsAfterAttention(i), run);
            buffers.begin(Stage.MLP);
            mlp.forward(i, rowsAfterAttention(i), run);
            offload.afterForward(i, this::offloadedRows);
        }
        buffers.begin(Stage.HEAD);
        head.forward();
        hasHeadInput = true;
    }

    /** The rows that a layer computes from its attention on: of the last one's a loss reads only some. */
    private RowSet rowsAfterAttention(int layer) {
        return layer == activations.layers() - 1 ? batch.judged() : batch.all();
    }

    /** What {@link Offload} moves of a layer: what nobody reads but its backward pass, and takes most. */
    private List<Tensor> offloaded(int layer) {
        List<Tensor> all = new ArrayList<>(activations.layer(layer).largest());
        all.add(activations.input(layer));
        return all;
    }

    private List<Tensor> offloadedRows(int layer) {
        return offloaded(layer).stream().map(batch::of).toList();
    }

    private void requireHeadInput() {
        if (!hasHeadInput) {
            throw new IllegalStateException(
                    "expected a forward pass of the loaded batch, found none, or one whose gradients were taken");
        }
    }

    private void requireAllRows() {
        if (lossOnly) {
            throw new IllegalStateException("expected a pass of which all is read, found one opened for its loss only");
        }
    }

    @Override
    public void addLoss(Tensor loss) {
        requireHeadInput();
        if (batch.supervised() > 0) {
            buffers.begin(Stage.HEAD);
            head.addLoss(loss);
        }
    }

    @Override
    public void addLossAndGradients(Tensor loss, Tensor gradScale, Tensor grad) {
        requireHeadInput();
        if (batch.supervised() == 0) {
            return;
        }
        hasHeadInput = false;
        buffers.begin(Stage.HEAD);
        head.addLossAndGradient(loss, gradScale, batch.judged().of(activations.dX()));
        for (int i = activations.layers() - 1; i >= reach.lowest(); i--) {
            offload.beforeBackward(i);
            buffers.begin(Stage.MLP_BACKWARD);
            mlp.backward(i, rowsAfterAttention(i), grad, run());
            if (reach.reachesAttention(i)) {
                buffers.begin(Stage.ATTENTION_BACKWARD);
                attention.backward(i, rowsAfterAttention(i), grad, run());
            }
            offload.afterBackward(i, this::offloadedRows);
        }
    }

    @Override
    public void logits(Tensor logits) {
        requireAllRows();
        requireHeadInput();
        buffers.begin(Stage.HEAD);
        head.logits(logits);
    }

    @Override
    public List<ReluMask> reluMasks() {
        requireAllRows();
        if (!shape.keepsReluMasks()) {
            throw new IllegalStateException("expected a pass that keeps its ReLU masks, found " + shape);
        }
        List<ReluMask> masks = new ArrayList<>();
        Band given = new Band(0, 0, batch.givenRows());
        for (int i = 0; i < activations.layers(); i++) {
            masks.add(new ReluMask(i, config.ffnDim(), activations.reluMasks().dense(i, given)));
        }
        return masks;
    }

    @Override
    public void sense() {
        if (!senses()) {
            throw new IllegalStateException("expected a pass opened to sense its coverage, found one with senseEvery=0");
        }
        forward(Run.SENSING);
    }

    @Override
    public @Nullable BlockChoice blockChoice() {
        return selection == null
                ? null
                : new Choice(selection, () -> mode == Mode.SPARSE,
                        () -> selection.coverage(i -> rowsAfterAttention(i).rows()));
    }

    @Override
    public @Nullable BlockChoice attentionChoice() {
        return attentionSelection == null
                ? null
                : new Choice(attentionSelection, () -> mode == Mode.SPARSE && attentionSelection.isActive(),
                        attentionSelection::coverage);
    }

    /** A selection, with what depends on the loaded batch. */
    private record Choice(BlockSelection selection, BooleanSupplier lists,
            Supplier<double[]> covered) implements BlockChoice {

        @Override
        public boolean isSparse(int layer) {
            return selection.isSparse(layer);
        }

        @Override
        public boolean hasLists() {
            return lists.getAsBoolean();
        }

        @Override
        public Tensor summaries() {
            return selection.summaries();
        }

        @Override
        public double[] coverage() {
            selection.requireSensing();
            return covered.get();
        }

        @Override
        public void tighten(int steps) {
            selection.tighten(steps);
        }

        @Override
        public String toString() {
            return selection.toString();
        }
    }

    @Override
    public String toString() {
        return "pass of up to " + shape.tokens() + " tokens, samples of up to " + shape.maxSeqlen()
                + (shape.training() ? ", forward and backward" : ", forward")
                + (selection == null ? "" : ", MLPs: " + selection)
                + (attentionSelection == null ? "" : ", attention: " + attentionSelection);
    }
}
