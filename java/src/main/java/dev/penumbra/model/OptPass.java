package dev.penumbra.model;

import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.Dropout;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.data.Batch;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
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
final class OptPass implements ModelPass {

    /** Sizes of batches that recorded operations tell apart: each costs a recording, fewer cost more padding. */
    private static final int SIGNATURE_STEPS = 32;

    private static final int SIGNATURE_SAMPLES = 16;

    private static final List<String> QKV = List.of("q_proj", "k_proj", "v_proj");
    private static final List<String> OUT = List.of("out_proj");
    private static final List<String> FC1 = List.of("fc1");
    private static final List<String> FC2 = List.of("fc2");

    private final Opt model;
    private final OptConfig config;
    private final OptWeights weights;
    private final @Nullable LoraAdapter adapter;
    private final Buffers buffers;
    private final PassShape shape;
    private final @Nullable MlpObserver observer;
    private final int capacity;
    private final float attentionScale;

    private final Tensor ids;
    private final Tensor positions;
    private final Tensor cuSeqlens;
    private final Tensor rows;
    private final Tensor targets;
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
    private final Tensor dActivation;
    private final List<Tensor> dh = new ArrayList<>();

    private final Tensor stagedIds;
    private final Tensor stagedPositions;
    private final Tensor stagedCuSeqlens;
    private final Tensor stagedRows;
    private final Tensor stagedTargets;
    private final Tensor stagedDropout;

    private int m;
    private int batchTokens;
    private int supervised;
    private int samples;
    private int maxSeqlen;
    private boolean dropping;

    OptPass(Opt model, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options, Buffers buffers) {
        this.model = model;
        this.config = model.config();
        this.weights = model.weights();
        this.adapter = adapter;
        this.buffers = buffers;
        this.shape = shape;
        observer = options.observer();
        capacity = shape.capacity();
        attentionScale = (float) (1 / Math.sqrt(config.headDim()));
        boolean training = shape.training();
        if (training && adapter == null) {
            throw new IllegalArgumentException("expected an adapter to train, found none");
        }
        lowest = training ? adapter.sites().getFirst().layer().layer() : config.numHiddenLayers();

        ids = inputs("ids", capacity);
        positions = inputs("positions", capacity);
        cuSeqlens = inputs("cu_seqlens", capacity + 1);
        rows = inputs("rows", capacity);
        targets = inputs("targets", capacity);
        dropoutState = buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, "dropout state", DType.U64, 2);
        stagedIds = buffers.stage("staged ids", DType.I32, capacity);
        stagedPositions = buffers.stage("staged positions", DType.I32, capacity);
        stagedCuSeqlens = buffers.stage("staged cu_seqlens", DType.I32, capacity + 1);
        stagedRows = buffers.stage("staged rows", DType.I32, capacity);
        stagedTargets = buffers.stage("staged targets", DType.I32, capacity);
        stagedDropout = buffers.stage("staged dropout state", DType.U64, 2);

        DType dtype = model.dtype();
        int h = config.hiddenSize();
        embedded = config.hasProjection() ? activations("embedded", config.wordEmbedProjDim()) : null;
        x = new Tensor[config.numHiddenLayers() + 1];
        layers = new LayerBuffers[config.numHiddenLayers()];
        reluMasks = new Tensor[layers.length];
        LayerBuffers.Scratch scratch = LayerBuffers.Scratch.allocate(buffers, config, dtype, capacity);
        LayerBuffers shared = lowest == 0
                ? null
                : new LayerBuffers(buffers, config, dtype, capacity, "shared ", false, scratch);
        x[0] = activations("layers.0 input", h);
        for (int i = 0; i < layers.length; i++) {
            String at = "layers." + i + ".";
            boolean saved = i >= lowest;
            layers[i] = saved
                    ? new LayerBuffers(buffers, config, dtype, capacity, at, hasAny(i, FC2), scratch)
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
        // The forward pass's activation has no reader left, unless an adapter on fc2 has.
        boolean activationsKept = adapter != null && adapter.sites().stream().anyMatch(s -> FC2.contains(s.layer().kind()));
        dActivation = !training || !activationsKept ? scratch.activation() : activations("d activation", config.ffnDim());
        if (training) {
            for (int i = 0; i < 3; i++) {
                dh.add(buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, "dh " + i, DType.F32, capacity, adapter.config().r()));
            }
        }
    }

    /** Plans a pass; returns the bytes of workspace it needs. */
    static long plan(Opt model, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options, MemoryPlan plan) {
        Buffers planning = Buffers.planning(model.backend(), plan);
        OptPass pass = new OptPass(model, adapter, shape, options, planning);
        pass.m = pass.capacity;
        pass.supervised = pass.capacity;
        pass.samples = Math.ceilDiv(pass.capacity, shape.maxSeqlen());
        pass.maxSeqlen = shape.maxSeqlen();
        pass.layersForward();
        MemoryPlan scratch = new MemoryPlan();
        Buffers descriptions = Buffers.planning(model.backend(), scratch);
        Tensor scalar = descriptions.allocate(MemoryPlan.Kind.WORKSPACE, "scalar", DType.F32, 1);
        if (shape.training()) {
            pass.addLossAndGradients(scalar, scalar, descriptions.allocate(MemoryPlan.Kind.WORKSPACE, "gradients", DType.F32,
                    adapter.parameters().shape().size()));
        }
        pass.addLoss(scalar);
        pass.logits(descriptions.allocate(MemoryPlan.Kind.WORKSPACE, "logits", DType.F32, pass.capacity,
                config(model).vocabSize()));
        return planning.workspaceBytes();
    }

    private static OptConfig config(Opt model) {
        return model.config();
    }

    private Tensor inputs(String name, long n) {
        return buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, name, DType.I32, n);
    }

    private Tensor activations(String name, long width) {
        return buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, name, model.dtype(), capacity, width);
    }

    private boolean hasAny(int layer, List<String> kinds) {
        return kinds.stream().anyMatch(kind -> site(layer, kind) != null);
    }

    private @Nullable Site site(int layer, String kind) {
        String at = kind.startsWith("fc") ? "layers." + layer + "." : "layers." + layer + ".self_attn.";
        return adapter == null ? null : adapter.site(at + kind);
    }

    private List<Site> sitesOf(int layer) {
        return adapter.sites().stream().filter(s -> s.layer().layer() == layer).toList();
    }

    /** The batch's rows of a buffer. */
    private Tensor top(Tensor buffer) {
        return buffer.slice(0, 0, m);
    }

    @Override
    public void load(Batch batch, @Nullable DropoutSeed dropout) {
        upload(batch);
        dropping = dropout != null && adapter != null && adapter.config().loraDropout() > 0;
        if (dropping) {
            stagedDropout.segment().set(ValueLayout.JAVA_LONG, 0, dropout.seed());
            stagedDropout.segment().set(ValueLayout.JAVA_LONG, 8, dropout.offset());
            model.backend().upload(stagedDropout, dropoutState);
        }
    }

    /** @param dropping whether dropout is drawn; its seed lies on the device */
    private record Signature(int tokens, int supervised, int samples, int maxSeqlen, boolean dropping) {
    }

    @Override
    public Object signature() {
        return new Signature(m, supervised, samples, maxSeqlen, dropping);
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
        send(Arrays.copyOf(batch.ids(), m), stagedIds, ids);
        send(Arrays.copyOf(batch.positions(), m), stagedPositions, positions);
        send(padded(batch.cuSeqlens(), samples + 1, batch.cuSeqlens()[batch.samples()]), stagedCuSeqlens, cuSeqlens);
        send(padded(batch.rows(), supervised, LinearCrossEntropy.NO_ROW), stagedRows, rows);
        send(Arrays.copyOf(batch.targets(), supervised), stagedTargets, targets);
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

    private void send(int[] values, Tensor staged, Tensor device) {
        if (values.length > 0) {
            Tensor part = staged.slice(0, 0, values.length);
            part.copyFrom(values);
            model.backend().upload(part, device.slice(0, 0, values.length));
        }
    }

    private void layersForward() {
        Tensor first = top(x[0]);
        Tensor at = positions.slice(0, 0, m);
        Tensor tokens = ids.slice(0, 0, m);
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
            norm(input, w.attentionNorm(), attentionInput, b.mean1, b.rstd1);
        }
        linear(i, QKV, attentionInput, w.qkv(), top(b.qkv), null, null);
        buffers.run(new AttentionForward(
                attentionScale, part(b.qkv, 0), part(b.qkv, 1), part(b.qkv, 2), heads(top(b.attention)), lse(b),
                borders(), borders(), maxSeqlen));
        linear(i, OUT, top(b.attention), w.out(), middle, input, null);
        Tensor mlpInput;
        Tensor mlpResidual;
        if (pre) {
            mlpInput = top(b.norm2);
            mlpResidual = middle;
            norm(middle, w.mlpNorm(), mlpInput, b.mean2, b.rstd2, pooling());
        } else {
            mlpInput = top(b.norm1);
            mlpResidual = mlpInput;
            norm(middle, w.attentionNorm(), mlpInput, b.mean1, b.rstd1, pooling());
        }
        linear(i, FC1, mlpInput, w.fc1(), top(b.activation), null, top(reluMasks[i]));
        if (observer != null && !buffers.isPlanning()) {
            observer.afterFc1(i, mlpInput, pooled == null ? null : pooled.slice(0, 0, Math.ceilDiv(m, observer.poolRows())),
                    top(b.activation), top(reluMasks[i]), validRows());
        }
        if (pre) {
            linear(i, FC2, top(b.activation), w.fc2(), output, mlpResidual, null);
        } else {
            linear(i, FC2, top(b.activation), w.fc2(), top(b.sum2), mlpResidual, null);
            norm(top(b.sum2), w.mlpNorm(), output, b.mean2, b.rstd2);
        }
    }

    private void norm(Tensor in, OptWeights.LayerNorm norm, Tensor out, Tensor mean, Tensor rstd) {
        norm(in, norm, out, mean, rstd, null);
    }

    private void norm(Tensor in, OptWeights.LayerNorm norm, Tensor out, Tensor mean, Tensor rstd, @Nullable Pooling pooling) {
        buffers.run(new LayerNormForward(in, norm.gamma(), norm.beta(), Opt.EPSILON, out, top(mean), top(rstd), pooling));
    }

    private @Nullable Pooling pooling() {
        return pooled == null
                ? null
                : new Pooling(pooled.slice(0, 0, Math.ceilDiv(m, observer.poolRows())), observer.poolRows(), validRows());
    }

    /** i32 [1] on the device: where the last sample ends. */
    private Tensor validRows() {
        return cuSeqlens.slice(0, samples, samples + 1L);
    }

    /** d = x Wᵀ + bias + adapters' terms, ReLU where a mask is given, + residual. Kinds lie side by side in d's columns. */
    private void linear(int layer, List<String> kinds, Tensor in, OptWeights.Linear w, Tensor d, @Nullable Tensor residual,
            @Nullable Tensor mask) {
        List<LowRank> terms = new ArrayList<>();
        for (int k = 0; k < kinds.size(); k++) {
            Site site = site(layer, kinds.get(k));
            if (site != null) {
                Tensor h = top(layers[layer].h.get(kinds.get(k)));
                buffers.run(new LoraProject(in, site.a(adapter.parameters()), dropout(site), h));
                terms.add(new LowRank(h, site.b(adapter.parameters()), (long) k * site.layer().out(),
                        (float) adapter.config().scaling(), null));
            }
        }
        // fc2 is packed transposed.
        Gemm.Builder product = kinds == FC2 ? Gemm.backward(in, w.weight(), d) : Gemm.forward(in, w.weight(), d);
        Gemm.Builder gemm = product.lowRank(terms).bias(w.bias()).residual(residual).workspace(buffers.workspace());
        buffers.run((mask == null ? gemm : gemm.relu(mask)).build());
    }

    private @Nullable Dropout dropout(Site site) {
        return dropping ? new Dropout((float) adapter.config().loraDropout(), site.index(), dropoutState) : null;
    }

    private Tensor borders() {
        return cuSeqlens.slice(0, 0, samples + 1L);
    }

    private Tensor heads(Tensor matrix) {
        return matrix.splitLast(config.headDim());
    }

    /** q, k or v: [m, heads, headDim] of a [m, 3 h] buffer. */
    private Tensor part(Tensor qkv, int index) {
        long h = config.hiddenSize();
        return heads(top(qkv).slice(1, index * h, (index + 1) * h));
    }

    private Tensor lse(LayerBuffers b) {
        return b.lse.slice(0, 0, (long) config.numAttentionHeads() * m).reshape(config.numAttentionHeads(), m);
    }

    private Tensor headInput() {
        return top(projected == null ? hidden : projected);
    }

    @Override
    public void addLoss(Tensor loss) {
        if (supervised > 0) {
            buffers.run(new LinearCrossEntropy(
                    headInput(), weights.head, rows.slice(0, 0, supervised), targets.slice(0, 0, supervised), null, loss,
                    null,
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
                headInput(), weights.head, rows.slice(0, 0, supervised), targets.slice(0, 0, supervised), gradScale, loss,
                dInput,
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
        Tensor dActivations = top(dActivation);
        Tensor block = top(dBlock);

        if (!pre) {
            normBackward(dx, b.sum2, b.mean2, b.rstd2, w.mlpNorm(), null, dx);
        }
        List<LowRank> terms = gradients(i, FC2, dx, top(b.activation), grad);
        if (!needsFc1) {
            return;
        }
        buffers.run(Gemm.forward(dx, w.fc2().weight(), dActivations).lowRank(terms).drelu(top(reluMasks[i]))
                .workspace(buffers.workspace()).build());
        if (pre && hasAny(i, FC1)) {
            norm(top(b.middle), w.mlpNorm(), top(b.norm2), b.mean2, b.rstd2);
        }
        terms = gradients(i, FC1, dActivations, top(pre ? b.norm2 : b.norm1), grad);
        if (!needsAttention) {
            return;
        }
        if (pre) {
            product(dActivations, w.fc1(), terms, null, block);
            normBackward(block, b.middle, b.mean2, b.rstd2, w.mlpNorm(), dx, dx);
        } else {
            product(dActivations, w.fc1(), terms, dx, dx);
            normBackward(dx, b.middle, b.mean1, b.rstd1, w.attentionNorm(), null, dx);
        }
        terms = gradients(i, OUT, dx, top(b.attention), grad);
        if (!needsQkv) {
            return;
        }
        product(dx, w.out(), terms, null, block);
        buffers.run(new AttentionBackward(
                attentionScale, part(b.qkv, 0), part(b.qkv, 1), part(b.qkv, 2), heads(top(b.attention)), lse(b),
                heads(block),
                part(dQkv, 0), part(dQkv, 1), part(dQkv, 2), borders(), maxSeqlen, buffers.workspace()));
        if (pre && hasAny(i, QKV)) {
            norm(top(x[i]), w.attentionNorm(), top(b.norm1), b.mean1, b.rstd1);
        }
        terms = gradients(i, QKV, top(dQkv), top(pre ? b.norm1 : x[i]), grad);
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

    /** grad += the adapters' gradients; returns what they add to the gradient of their input. */
    private List<LowRank> gradients(int layer, List<String> kinds, Tensor dy, Tensor in, Tensor grad) {
        List<LowRank> terms = new ArrayList<>();
        for (int k = 0; k < kinds.size(); k++) {
            Site site = site(layer, kinds.get(k));
            if (site != null) {
                Tensor a = site.a(adapter.parameters());
                Tensor dhK = top(dh.get(k));
                long column = (long) k * site.layer().out();
                buffers.run(new LoraGradients(
                        (float) adapter.config().scaling(), dy.slice(1, column, column + site.layer().out()), in,
                        top(layers[layer].h.get(kinds.get(k))), a, site.b(adapter.parameters()), dropout(site), dhK,
                        site.a(grad), site.b(grad), buffers.workspace()));
                terms.add(new LowRank(dhK, a.transpose(), 0, 1, dropout(site)));
            }
        }
        return terms;
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
