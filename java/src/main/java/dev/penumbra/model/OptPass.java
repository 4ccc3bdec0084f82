package dev.penumbra.model;

import static dev.penumbra.model.AdapterTerms.FC1;
import static dev.penumbra.model.AdapterTerms.OUT;
import static dev.penumbra.model.AdapterTerms.QKV;

import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNorm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.data.Batch;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.model.BatchInputs.Input;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * OPT's forward pass and the backward pass derived from it by hand.
 *
 * <p>Gradients flow through frozen weights only as far down as the lowest adapter: layers below it share one set of buffers,
 * and of the lowest layer only the part above its lowest adapter is computed.
 */
final class OptPass implements ModelPass, OptMlp.Batch, AttentionSelection.Batch {

    /** Sizes of batches that recorded operations tell apart: each costs a recording, fewer cost more padding. */
    private static final int SIGNATURE_STEPS = 32;

    static final int SIGNATURE_SAMPLES = 16;

    private final Opt model;
    private final OptConfig config;
    private final OptWeights weights;
    private final @Nullable LoraAdapter adapter;
    private final Buffers buffers;
    private final PassShape shape;
    private final @Nullable MlpObserver observer;
    private final AdapterTerms adapters;
    private final @Nullable MlpSelection selection;
    private final OptMlp mlp;
    private final @Nullable AttentionSelection attentionSelection;
    private final OptAttention attention;
    private final int capacity;

    private final BatchInputs inputs;
    private final Tensor cuSeqlens;
    private final Tensor dropoutState;
    private final @Nullable Tensor embedded;
    private final Tensor[] x;
    private final LayerBuffers[] layers;
    private final Tensor[] reluMasks;
    private final Tensor meanFinal;
    private final Tensor rstdFinal;
    private final @Nullable Tensor pooled;
    private final Tensor hidden;
    private final @Nullable Tensor projected;
    private final int lowest;

    private final @Nullable Tensor dHead;
    private final @Nullable Tensor dX;
    private final @Nullable Tensor dBlock;
    private final @Nullable Tensor dQkv;
    private final Tensor stagedDropout;

    private int m;
    private int batchTokens;
    private int supervised;
    private int samples;
    private int maxSeqlen;
    private boolean dropping;
    private Mode mode = Mode.DENSE;
    private boolean sensing;

    OptPass(Opt model, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options, Buffers buffers) {
        this.model = model;
        this.config = model.config();
        this.weights = model.weights();
        this.adapter = adapter;
        this.buffers = buffers;
        this.shape = shape;
        observer = options.observer();
        capacity = shape.capacity();
        boolean training = shape.training();
        if (training && adapter == null) {
            throw new IllegalArgumentException("expected an adapter to train, found none");
        }
        lowest = training ? adapter.sites().getFirst().layer().layer() : config.numHiddenLayers();

        dropoutState = buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, "dropout state", DType.U64, 2);
        stagedDropout = buffers.stage("staged dropout state", DType.U64, 2);

        adapters = new AdapterTerms(buffers, adapter, dropoutState, capacity, training);
        selection = options.sparsity() == null || options.sparsity().config().isOff()
                ? null
                : new MlpSelection(options.sparsity(), model.backend(), buffers, capacity, config.hiddenSize(),
                        firstMlpGradient());
        mlp = new OptMlp(model, adapters, buffers, selection, this, capacity, lowest, training, observer != null);
        int bands = Math.ceilDiv(capacity, mlp.bandRows());
        inputs = new BatchInputs(buffers, capacity, capacity, capacity + 1, capacity, capacity, bands);
        cuSeqlens = inputs.get(Input.CU_SEQLENS);
        attentionSelection = options.attention() == null || options.attention().config().policy().isDense()
                ? null
                : new AttentionSelection(options.attention(), model.backend(), buffers, this, shape, config,
                        hasAny(lowest, QKV) ? lowest : lowest + 1);
        attention = new OptAttention(config, buffers, this, attentionSelection, options.attentionObserver(), capacity);

        DType dtype = model.dtype();
        int h = config.hiddenSize();
        embedded = config.hasProjection() ? activations("embedded", config.wordEmbedProjDim()) : null;
        x = new Tensor[config.numHiddenLayers() + 1];
        layers = new LayerBuffers[config.numHiddenLayers()];
        reluMasks = new Tensor[layers.length];
        Tensor scratch = config.doLayerNormBefore() ? activations("scratch norm", h) : null;
        LayerBuffers shared = lowest == 0
                ? null
                : new LayerBuffers(buffers, config, dtype, capacity, "shared ", scratch);
        x[0] = activations("layers.0 input", h);
        for (int i = 0; i < layers.length; i++) {
            String at = "layers." + i + ".";
            boolean saved = i >= lowest;
            layers[i] = saved
                    ? new LayerBuffers(buffers, config, dtype, capacity, at, scratch)
                    : shared;
            reluMasks[i] = saved || !shape.keepsReluMasks()
                    ? layers[i].mask
                    : LayerBuffers.reluMask(buffers, config, capacity, at);
            // A layer without a backward pass may write its output over its input.
            x[i + 1] = saved ? activations(at + "output", h) : x[i];
            if (adapter != null) {
                for (Site site : sitesOf(i)) {
                    if (saved || !layers[i].h.containsKey(site.layer().kind())) {
                        layers[i].allocateH(buffers, saved ? at : "shared ", site, capacity);
                    }
                }
            }
        }
        meanFinal = buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, "final mean", DType.F32, capacity);
        rstdFinal = buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, "final rstd", DType.F32, capacity);
        pooled = observer == null || observer.poolRows() == 0
                ? null
                : buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, "pooled", DType.F32,
                        Math.ceilDiv(capacity, observer.poolRows()), h);
        hidden = weights.finalNorm == null ? x[layers.length] : activations("final norm", h);
        projected = config.hasProjection() ? activations("projected", config.wordEmbedProjDim()) : null;
        dHead = training && config.hasProjection() ? activations("d projected", config.wordEmbedProjDim()) : null;
        dX = training ? activations("d hidden", h) : null;
        dBlock = training ? activations("d block", h) : null;
        dQkv = training ? activations("d qkv", 3L * h) : null;
    }

    /** Plans a pass; returns the bytes of workspace it needs. */
    static long plan(Opt model, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options, MemoryPlan plan) {
        Buffers planning = Buffers.planning(model.backend(), plan);
        OptPass pass = new OptPass(model, adapter, shape, options, planning);
        pass.m = pass.capacity;
        pass.supervised = pass.capacity;
        pass.samples = Math.ceilDiv(pass.capacity, shape.maxSeqlen());
        pass.maxSeqlen = shape.maxSeqlen();
        MemoryPlan scratch = new MemoryPlan();
        Buffers descriptions = Buffers.planning(model.backend(), scratch);
        Tensor scalar = descriptions.allocate(MemoryPlan.Kind.WORKSPACE, "scalar", DType.F32, 1);
        Tensor grad = !shape.training()
                ? null
                : descriptions.allocate(MemoryPlan.Kind.WORKSPACE, "gradients", DType.F32,
                        adapter.parameters().shape().size());
        for (Mode mode : pass.hasLists() ? Mode.values() : new Mode[]{Mode.DENSE}) {
            pass.mode = mode;
            pass.sensing = mode == Mode.DENSE && pass.senses();
            if (mode == Mode.SPARSE && pass.attentionSelection != null) {
                // Most lists: what makes them needs most then.
                pass.samples = Math.min(pass.capacity, pass.attentionSelection.mostSamples());
                pass.attentionSelection.begin(pass.samples);
            }
            pass.layersForward();
            if (shape.training()) {
                pass.addLossAndGradients(scalar, scalar, grad);
            }
        }
        pass.addLoss(scalar);
        pass.logits(descriptions.allocate(MemoryPlan.Kind.WORKSPACE, "logits", DType.F32, pass.capacity,
                config(model).vocabSize()));
        return planning.workspaceBytes();
    }

    private boolean hasLists() {
        return selection != null || attentionSelection != null;
    }

    private boolean senses() {
        return selection != null && selection.senses() || attentionSelection != null && attentionSelection.senses();
    }

    private static OptConfig config(Opt model) {
        return model.config();
    }

    private Tensor activations(String name, long width) {
        return buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, name, model.dtype(), capacity, width);
    }

    /** The first layer whose activation gets a gradient; one past the last, or more, where none does. */
    private int firstMlpGradient() {
        boolean reached = hasAny(lowest, QKV) || hasAny(lowest, OUT) || hasAny(lowest, FC1);
        return reached ? lowest : lowest + 1;
    }

    private boolean hasAny(int layer, List<String> kinds) {
        return adapters.has(layer, kinds);
    }

    private List<Site> sitesOf(int layer) {
        return adapter.sites().stream().filter(s -> s.layer().layer() == layer).toList();
    }

    /** The batch's rows of a buffer. */
    private Tensor top(Tensor buffer) {
        return buffer.slice(0, 0, m);
    }

    @Override
    public int rows() {
        return m;
    }

    @Override
    public Tensor validRows() {
        // Where the last sample ends.
        return cuSeqlens.slice(0, samples, samples + 1L);
    }

    @Override
    public Tensor validRows(Band band) {
        return inputs.get(Input.ROWS_OF_BANDS).slice(0, band.index(), band.index() + 1L);
    }

    @Override
    public Tensor mask(int layer) {
        return reluMasks[layer];
    }

    @Override
    public LayerBuffers layer(int layer) {
        return layers[layer];
    }

    @Override
    public void load(Batch batch, @Nullable DropoutSeed dropout, Mode wanted) {
        if (wanted == Mode.SPARSE && !hasLists()) {
            throw new IllegalStateException("expected a pass that was opened to choose blocks, found a dense one");
        }
        mode = wanted;
        upload(batch);
        if (mode == Mode.SPARSE && selection != null) {
            selection.draw(dropout);
        }
        if (mode == Mode.SPARSE && attentionSelection != null) {
            attentionSelection.begin(samples);
            attentionSelection.prepare(dropout);
        }
        dropping = dropout != null && adapter != null && adapter.config().loraDropout() > 0;
        adapters.setDropping(dropping);
        if (dropping) {
            stagedDropout.segment().set(ValueLayout.JAVA_LONG, 0, dropout.seed());
            stagedDropout.segment().set(ValueLayout.JAVA_LONG, 8, dropout.offset());
            model.backend().upload(stagedDropout, dropoutState);
        }
    }

    /**
     * @param dropping whether dropout is drawn; its seed lies on the device
     * @param tightness what is asked of lists beyond their layers' coverage
     * @param attentionLists whether heads attend by lists
     */
    private record Signature(int tokens, int supervised, int samples, int maxSeqlen, boolean dropping, Mode mode,
            int tightness, boolean attentionLists, int attentionTightness) {
    }

    @Override
    public Object signature() {
        boolean sparse = mode == Mode.SPARSE;
        boolean lists = sparse && attentionSelection != null && attentionSelection.isActive();
        return new Signature(m, supervised, samples, maxSeqlen, dropping, mode,
                sparse && selection != null ? selection.tightness() : 0, lists, lists ? attentionSelection.tightness() : 0);
    }

    @Override
    public void forward() {
        layersForward();
    }

    private void upload(Batch batch) {
        int given = batch.ids().length;
        if (given == 0 || given > capacity || batch.rows().length > capacity || batch.samples() > capacity) {
            throw new IllegalArgumentException("expected 1 to " + capacity + " tokens in a batch, found " + given);
        }
        if (batch.maxSeqlen() > config.maxPositionEmbeddings()) {
            throw new ModelException("expected samples of at most " + config.maxPositionEmbeddings()
                    + " tokens, the model's positions, found one of " + batch.maxSeqlen());
        }
        batchTokens = given;
        // Recorded operations are worth their recording when many batches share a signature: sizes are rounded up for them.
        boolean recorded = model.backend().isAsynchronous();
        int block = recorded ? PassShape.roundUp(Math.ceilDiv(capacity, SIGNATURE_STEPS)) : PassShape.ROW_BLOCK;
        m = roundUp(given, block);
        supervised = recorded ? roundUp(batch.rows().length, block) : batch.rows().length;
        samples = recorded ? roundUp(batch.samples(), SIGNATURE_SAMPLES) : batch.samples();
        maxSeqlen = recorded ? Math.max(shape.maxSeqlen(), batch.maxSeqlen()) : batch.maxSeqlen();
        // Rows up to the block's end belong to no sample; token and position 0 are as good as any.
        inputs.set(Input.IDS, Arrays.copyOf(batch.ids(), m));
        inputs.set(Input.POSITIONS, Arrays.copyOf(batch.positions(), m));
        inputs.set(Input.CU_SEQLENS, padded(batch.cuSeqlens(), samples + 1, batch.cuSeqlens()[batch.samples()]));
        inputs.set(Input.ROWS, padded(batch.rows(), supervised, LinearCrossEntropy.NO_ROW));
        inputs.set(Input.TARGETS, Arrays.copyOf(batch.targets(), supervised));
        int valid = batch.cuSeqlens()[batch.samples()];
        int[] inBands = new int[Math.ceilDiv(m, mlp.bandRows())];
        for (int b = 0; b < inBands.length; b++) {
            inBands[b] = Math.clamp(valid - (long) b * mlp.bandRows(), 0, mlp.bandRows());
        }
        inputs.set(Input.ROWS_OF_BANDS, inBands);
        inputs.upload(model.backend());
    }

    /** The next multiple of {@code block}, within the capacity. */
    private int roundUp(int count, int block) {
        return Math.min(capacity, Math.ceilDiv(count, block) * block);
    }

    private static int[] padded(int[] values, int length, int filler) {
        int[] padded = Arrays.copyOf(values, length);
        Arrays.fill(padded, values.length, length, filler);
        return padded;
    }

    private void layersForward() {
        Tensor first = top(x[0]);
        Tensor at = inputs.get(Input.POSITIONS).slice(0, 0, m);
        Tensor tokens = inputs.get(Input.IDS).slice(0, 0, m);
        if (embedded == null) {
            buffers.run(new Embedding(tokens, weights.tokens, at, weights.positions, Opt.POSITION_OFFSET, null, first));
        } else {
            buffers.run(new Embedding(tokens, weights.tokens, null, null, 0, null, top(embedded)));
            buffers.run(
                    Gemm.forward(top(embedded), weights.projectIn.weight(), first).workspace(buffers.workspace()).build());
            buffers.run(new Embedding(null, null, at, weights.positions, Opt.POSITION_OFFSET, first, first));
        }
        for (int i = 0; i < layers.length; i++) {
            layerForward(i);
        }
        if (weights.finalNorm != null) {
            norm(top(x[layers.length]), weights.finalNorm, top(hidden), meanFinal, rstdFinal);
        }
        if (projected != null) {
            buffers.run(Gemm.forward(top(hidden), weights.projectOut.weight(), top(projected)).workspace(buffers.workspace())
                    .build());
        }
    }

    private void layerForward(int i) {
        LayerBuffers b = layers[i];
        OptWeights.Layer w = weights.layers.get(i);
        boolean pre = config.doLayerNormBefore();
        Tensor input = top(x[i]);
        Tensor output = top(x[i + 1]);
        Tensor middle = top(b.middle);
        Tensor attentionInput = input;
        if (pre) {
            attentionInput = top(b.norm1);
            norm(input, w.attentionNorm(), attentionInput, b.mean1, b.rstd1, attention.pooling(i, attentionRun()),
                    adapters.projection(i, QKV, attentionInput, b.h, rowsOfBatch(), null));
        }
        List<LowRank> terms = pre
                ? adapters.projected(i, QKV, b.h, rowsOfBatch())
                : adapters.project(i, QKV, input, b.h, rowsOfBatch(), null);
        linear(attentionInput, w.qkv(), terms, null, top(b.qkv));
        attention.forward(i, b, attentionRun());
        terms = adapters.project(i, OUT, top(b.attention), b.h, rowsOfBatch(), null);
        linear(top(b.attention), w.out(), terms, input, middle);
        Tensor mlpInput;
        Tensor mlpResidual;
        if (pre) {
            mlpInput = top(b.norm2);
            mlpResidual = middle;
            norm(middle, w.mlpNorm(), mlpInput, b.mean2, b.rstd2, pooling(i), null);
        } else {
            mlpInput = top(b.norm1);
            mlpResidual = mlpInput;
            norm(middle, w.attentionNorm(), mlpInput, b.mean1, b.rstd1, pooling(i), null);
        }
        boolean senses = sensing && selection != null && selection.senses();
        if (senses) {
            selection.beginSensing(i, m);
        }
        mlp.forward(i, mlpInput, mlpResidual, pre ? output : top(b.sum2), mode == Mode.SPARSE && !sensing,
                look(i, mlpInput));
        if (senses) {
            selection.endSensing(i, m);
        }
        if (!pre) {
            // Which the next layer's queries and keys are made of.
            norm(top(b.sum2), w.mlpNorm(), output, b.mean2, b.rstd2,
                    i + 1 < layers.length ? attention.pooling(i + 1, attentionRun()) : null, null);
        }
    }

    private OptAttention.Run attentionRun() {
        return sensing
                ? OptAttention.Run.SENSING
                : mode == Mode.SPARSE ? OptAttention.Run.SPARSE : OptAttention.Run.DENSE;
    }

    private OptMlp.@Nullable Look look(int i, Tensor mlpInput) {
        if (sensing) {
            return selection == null || !selection.senses()
                    ? null
                    : (band, activation) -> selection.sense(i, band, activation, band.of(reluMasks[i]), validRows(band), m);
        }
        if (observer == null || buffers.isPlanning() || mode == Mode.SPARSE) {
            return null;
        }
        return (band, activation) -> observer.afterFc1(i, mlpInput,
                pooled == null ? null : pooled.slice(0, 0, Math.ceilDiv(m, observer.poolRows())), activation,
                top(reluMasks[i]), validRows());
    }

    private void norm(Tensor in, OptWeights.LayerNorm norm, Tensor out, Tensor mean, Tensor rstd) {
        norm(in, norm, out, mean, rstd, null, null);
    }

    private void norm(Tensor in, OptWeights.LayerNorm norm, Tensor out, Tensor mean, Tensor rstd,
            @Nullable Pooling pooling, @Nullable LoraProject project) {
        buffers.run(new LayerNormForward(in, norm.gamma(), norm.beta(), Opt.EPSILON, out, top(mean), top(rstd), pooling,
                project));
    }

    private @Nullable Pooling pooling(int layer) {
        if (mode == Mode.SPARSE && !sensing) {
            return selection == null ? null : selection.pooling(layer, m, config.hiddenSize(), validRows());
        }
        return pooled == null
                ? null
                : new Pooling(pooled.slice(0, 0, Math.ceilDiv(m, observer.poolRows())), observer.poolRows(), validRows());
    }

    /** d = x Wᵀ + bias + adapters' terms + residual. */
    private void linear(Tensor in, OptWeights.Linear w, List<LowRank> terms, @Nullable Tensor residual, Tensor d) {
        buffers.run(Gemm.forward(in, w.weight(), d).lowRank(terms).bias(w.bias()).residual(residual)
                .workspace(buffers.workspace()).build());
    }

    private Band rowsOfBatch() {
        return new Band(0, 0, m);
    }

    @Override
    public long maxSeqlen() {
        return maxSeqlen;
    }

    @Override
    public Tensor borders() {
        return cuSeqlens.slice(0, 0, samples + 1L);
    }

    /** The batch's part of an array that has a number for each supervised row. */
    private Tensor supervised(Input input) {
        return inputs.get(input).slice(0, 0, supervised);
    }

    private Tensor headInput() {
        return top(projected == null ? hidden : projected);
    }

    @Override
    public void addLoss(Tensor loss) {
        if (supervised > 0) {
            buffers.run(new LinearCrossEntropy(
                    headInput(), weights.head, supervised(Input.ROWS), supervised(Input.TARGETS), null, loss, null,
                    buffers.workspace()));
        }
    }

    @Override
    public void addLossAndGradients(Tensor loss, Tensor gradScale, Tensor grad) {
        if (supervised == 0) {
            return;
        }
        Tensor dInput = top(dHead == null ? dX : dHead);
        buffers.run(new LinearCrossEntropy(
                headInput(), weights.head, supervised(Input.ROWS), supervised(Input.TARGETS), gradScale, loss, dInput,
                buffers.workspace()));
        Tensor dx = top(dX);
        if (dHead != null) {
            buffers.run(Gemm.backward(dInput, weights.projectOut.weight(), dx).workspace(buffers.workspace()).build());
        }
        if (weights.finalNorm != null) {
            normBackward(dx, x[layers.length], meanFinal, rstdFinal, weights.finalNorm, null, dx);
        }
        for (int i = layers.length - 1; i >= lowest; i--) {
            layerBackward(i, grad);
        }
    }

    /** dX holds the gradient of the layer's output and then that of its input, which the lowest layer leaves out. */
    private void layerBackward(int i, Tensor grad) {
        LayerBuffers b = layers[i];
        OptWeights.Layer w = weights.layers.get(i);
        boolean pre = config.doLayerNormBefore();
        boolean needsQkv = i > lowest || hasAny(i, QKV);
        boolean needsAttention = needsQkv || hasAny(i, OUT);
        boolean needsFc1 = needsAttention || hasAny(i, FC1);
        Tensor dx = top(dX);
        Tensor block = top(dBlock);

        if (!pre) {
            normBackward(dx, b.sum2, b.mean2, b.rstd2, w.mlpNorm(), null, dx);
        }
        boolean sparse = mode == Mode.SPARSE;
        AdapterInput mlpInput;
        if (!pre) {
            mlpInput = new AdapterInput(top(b.norm1), null);
        } else if (mlp.recomputes(i, sparse)) {
            norm(top(b.middle), w.mlpNorm(), top(b.norm2), b.mean2, b.rstd2);
            mlpInput = new AdapterInput(top(b.norm2), null);
        } else {
            mlpInput = normed(b.middle, w.mlpNorm(), b.mean2, b.rstd2);
        }
        Tensor dMlpInput = !needsAttention ? null : pre ? block : dx;
        mlp.backward(i, mlpInput, dx, pre ? null : dx, dMlpInput, needsFc1, grad, sparse);
        if (!needsAttention) {
            return;
        }
        if (pre) {
            normBackward(block, b.middle, b.mean2, b.rstd2, w.mlpNorm(), dx, dx);
        } else {
            normBackward(dx, b.middle, b.mean1, b.rstd1, w.attentionNorm(), null, dx);
        }
        List<LowRank> terms = gradients(i, OUT, dx, new AdapterInput(top(b.attention), null), grad);
        if (!needsQkv) {
            return;
        }
        product(dx, w.out(), terms, null, block);
        attention.backward(i, b, block, top(dQkv), attentionRun());
        AdapterInput qkvInput = pre
                ? normed(x[i], w.attentionNorm(), b.mean1, b.rstd1)
                : new AdapterInput(top(x[i]), null);
        terms = gradients(i, QKV, top(dQkv), qkvInput, grad);
        if (i == lowest) {
            return;
        }
        if (pre) {
            product(top(dQkv), w.qkv(), terms, null, block);
            normBackward(block, x[i], b.mean1, b.rstd1, w.attentionNorm(), dx, dx);
        } else {
            product(top(dQkv), w.qkv(), terms, dx, dx);
        }
    }

    /** dx = dy W + adapters' terms + residual. */
    private void product(Tensor dy, OptWeights.Linear w, List<LowRank> terms, @Nullable Tensor residual, Tensor dx) {
        buffers.run(
                Gemm.backward(dy, w.weight(), dx).lowRank(terms).residual(residual).workspace(buffers.workspace()).build());
    }

    private void normBackward(Tensor dy, Tensor in, Tensor mean, Tensor rstd, OptWeights.LayerNorm norm,
            @Nullable Tensor residual, Tensor dx) {
        buffers.run(new LayerNormBackward(dy, top(in), top(mean), top(rstd), norm.gamma(), residual, dx));
    }

    /** The output of a norm over {@code in}, which is not kept. */
    private AdapterInput normed(Tensor in, OptWeights.LayerNorm norm, Tensor mean, Tensor rstd) {
        return new AdapterInput(top(in), new LayerNorm(top(mean), top(rstd), norm.gamma(), norm.beta()));
    }

    private List<LowRank> gradients(int layer, List<String> kinds, Tensor dy, AdapterInput in, Tensor grad) {
        return adapters.gradients(layer, kinds, dy, in, layers[layer].h, rowsOfBatch(), grad, null, null);
    }

    @Override
    public @Nullable BlockChoice blockChoice() {
        return selection == null ? null : new MlpChoice();
    }

    @Override
    public @Nullable BlockChoice attentionChoice() {
        return attentionSelection == null ? null : new AttentionChoice();
    }

    @Override
    public void sense() {
        if (!senses()) {
            throw new IllegalStateException("expected a pass opened to sense its coverage, found one without");
        }
        sensing = true;
        try {
            layersForward();
        } finally {
            sensing = false;
        }
    }

    private final class MlpChoice implements BlockChoice {
        @Override
        public boolean isSparse(int layer) {
            return selection.isSparse(layer);
        }

        @Override
        public boolean hasLists() {
            return mode == Mode.SPARSE;
        }

        @Override
        public Tensor summaries() {
            return selection.summaries();
        }

        @Override
        public double[] coverage() {
            selection.requireSensing();
            return selection.coverage(m);
        }

        @Override
        public void tighten(int steps) {
            selection.tighten(steps);
        }
    }

    private final class AttentionChoice implements BlockChoice {
        @Override
        public boolean isSparse(int layer) {
            return attentionSelection.isSparse(layer);
        }

        @Override
        public boolean hasLists() {
            return mode == Mode.SPARSE && attentionSelection.isActive();
        }

        @Override
        public Tensor summaries() {
            return attentionSelection.summaries();
        }

        @Override
        public double[] coverage() {
            attentionSelection.requireSensing();
            return attentionSelection.coverage();
        }

        @Override
        public void tighten(int steps) {
            attentionSelection.tighten(steps);
        }
    }

    @Override
    public List<ReluMask> reluMasks() {
        if (!shape.keepsReluMasks()) {
            throw new IllegalStateException("expected a pass that keeps its ReLU masks, found " + shape);
        }
        List<ReluMask> masks = new ArrayList<>();
        for (int i = 0; i < layers.length; i++) {
            masks.add(new ReluMask(i, config.ffnDim(), reluMasks[i].slice(0, 0, batchTokens)));
        }
        return masks;
    }

    @Override
    public void logits(Tensor logits) {
        long count = logits.shape().dim(0);
        buffers.run(
                Gemm.forward(headInput().slice(0, 0, count), weights.head, logits).workspace(buffers.workspace()).build());
    }
}
