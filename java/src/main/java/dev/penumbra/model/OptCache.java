package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** OPT over one growing sample: each layer's keys and values are kept, and only new tokens are computed. */
final class OptCache implements KeyValueCache {

    private final Opt model;
    private final Backend backend;
    private final OptConfig config;
    private final OptWeights weights;
    private final @Nullable LoraAdapter adapter;
    private final int capacity;
    private final Tensor[] keys;
    private final Tensor[] values;
    private int length;

    OptCache(Opt model, @Nullable LoraAdapter adapter, int capacity, Arena owner) {
        if (capacity < 1 || capacity > model.maxPositions()) {
            throw new ModelException(
                    "expected a length of 1 to " + model.maxPositions() + ", the model's positions, found " + capacity);
        }
        this.model = model;
        this.backend = model.backend();
        this.config = model.config();
        this.weights = model.weights();
        this.adapter = adapter;
        this.capacity = capacity;
        keys = new Tensor[config.numHiddenLayers()];
        values = new Tensor[config.numHiddenLayers()];
        for (int i = 0; i < keys.length; i++) {
            keys[i] = backend.allocate(owner, model.dtype(), Shape.of(capacity, config.hiddenSize()));
            values[i] = backend.allocate(owner, model.dtype(), Shape.of(capacity, config.hiddenSize()));
        }
    }

    @Override
    public int length() {
        return length;
    }

    @Override
    public int capacity() {
        return capacity;
    }

    @Override
    public void clear() {
        length = 0;
    }

    @Override
    public float[] feed(int[] ids) {
        if (ids.length == 0 || length + ids.length > capacity) {
            throw new ModelException("expected 1 to " + (capacity - length) + " further tokens, found " + ids.length);
        }
        config.requireTokens(ids);
        try (Arena arena = Arena.ofConfined()) {
            float[] logits = new Feed(arena, ids.length).run(ids);
            length += ids.length;
            return logits;
        }
    }

    /** One call's buffers: a few rows wide, freed when it ends. */
    private final class Feed {
        private final Arena arena;
        private final int m;

        Feed(Arena arena, int m) {
            this.arena = arena;
            this.m = m;
        }

        float[] run(int[] given) {
            int h = config.hiddenSize();
            int[] at = new int[m];
            for (int i = 0; i < m; i++) {
                at[i] = length + i;
            }
            Tensor ids = device(given);
            Tensor positions = device(at);
            Tensor x = stream(h);
            if (weights.projectIn == null) {
                backend.run(new Embedding(ids, weights.tokens, positions, weights.positions, Opt.POSITION_OFFSET, null, x));
            } else {
                Tensor embedded = matrix(config.wordEmbedProjDim());
                backend.run(new Embedding(ids, weights.tokens, null, null, 0, null, embedded));
                gemm(Gemm.forward(embedded, weights.projectIn.weight(), x));
                backend.run(new Embedding(null, null, positions, weights.positions, Opt.POSITION_OFFSET, x, x));
            }
            Tensor bordersQ = device(new int[]{0, m});
            Tensor bordersK = device(new int[]{0, length + m});
            for (int i = 0; i < keys.length; i++) {
                x = layer(i, x, bordersQ, bordersK);
            }
            Tensor last = x.slice(0, m - 1L, m);
            last = weights.finalNorm == null
                    ? rounded(last)
                    : norm(last, weights.finalNorm, backend.allocate(arena, model.dtype(), last.shape()));
            if (weights.projectOut != null) {
                Tensor projected = backend.allocate(arena, model.dtype(), Shape.of(1, config.wordEmbedProjDim()));
                gemm(Gemm.forward(last, weights.projectOut.weight(), projected));
                last = projected;
            }
            Tensor logits = backend.allocate(arena, DType.F32, Shape.of(1, config.vocabSize()));
            gemm(Gemm.forward(last, weights.head, logits));
            return backend.toFloats(logits);
        }

        private Tensor layer(int i, Tensor x, Tensor bordersQ, Tensor bordersK) {
            OptWeights.Layer w = weights.layers.get(i);
            int h = config.hiddenSize();
            boolean pre = config.doLayerNormBefore();
            Tensor qkv = matrix(3 * h);
            Tensor qkvInput = pre ? norm(x, w.attentionNorm(), matrix(h)) : rounded(x);
            linear(i, AdapterTerms.QKV, qkvInput, w.qkv(), qkv, null, false);
            backend.run(new Convert(qkv.slice(1, h, 2L * h), keys[i].slice(0, length, length + (long) m)));
            backend.run(new Convert(qkv.slice(1, 2L * h, 3L * h), values[i].slice(0, length, length + (long) m)));
            Tensor attention = matrix(h);
            backend.run(new AttentionForward(
                    config.attentionScale(), heads(qkv.slice(1, 0, h)),
                    heads(keys[i].slice(0, 0, length + (long) m)),
                    heads(values[i].slice(0, 0, length + (long) m)), heads(attention), null, bordersQ, bordersK,
                    length + (long) m, null));
            Tensor middle = stream(h);
            linear(i, AdapterTerms.OUT, attention, w.out(), middle, x, false);
            // Of a post-norm layer: what its MLP adds to.
            Tensor residual = pre ? middle : norm(middle, w.attentionNorm(), stream(h));
            Tensor mlpInput = pre ? norm(middle, w.mlpNorm(), matrix(h)) : rounded(residual);
            Tensor activation = matrix(config.ffnDim());
            linear(i, AdapterTerms.FC1, mlpInput, w.fc1(), activation, null, true);
            Tensor output = stream(h);
            linear(i, AdapterTerms.FC2, activation, w.fc2(), output, residual, false);
            return pre ? output : norm(output, w.mlpNorm(), stream(h));
        }

        private void linear(int layer, List<String> kinds, Tensor in, OptWeights.Linear w, Tensor d,
                @Nullable Tensor residual, boolean relu) {
            List<LowRank> terms = new ArrayList<>();
            for (int k = 0; k < kinds.size(); k++) {
                Site site = AdapterTerms.site(adapter, layer, kinds.get(k));
                if (site != null) {
                    Tensor hK = backend.allocate(arena, DType.F32, Shape.of(m, site.r()));
                    backend.run(new LoraProject(in, site.a(adapter.parameters()), null, hK));
                    terms.add(new LowRank(hK, site.b(adapter.parameters()), (long) k * site.layer().out(),
                            (float) adapter.config().scaling(), null));
                }
            }
            // fc2 is packed transposed.
            Gemm.Builder product = kinds.equals(AdapterTerms.FC2)
                    ? Gemm.backward(in, w.weight(), d)
                    : Gemm.forward(in, w.weight(), d);
            Gemm.Builder gemm = product.lowRank(terms).bias(w.bias()).residual(residual);
            gemm(relu ? gemm.relu(null) : gemm);
        }

        private void gemm(Gemm.Builder gemm) {
            long bytes = backend.workspaceBytes(gemm.build());
            backend.run(gemm.workspace(bytes == 0 ? null : backend.allocate(arena, DType.U8, Shape.of(bytes))).build());
        }

        private Tensor norm(Tensor in, OptWeights.LayerNorm norm, Tensor out) {
            backend.run(new LayerNormForward(in, norm.gamma(), norm.beta(), Opt.EPSILON, out, null, null));
            return out;
        }

        /** In the dtype of products. */
        private Tensor rounded(Tensor in) {
            if (in.dtype() == model.dtype()) {
                return in;
            }
            Tensor out = backend.allocate(arena, model.dtype(), in.shape());
            backend.run(new Convert(in, out));
            return out;
        }

        /** Of the residual stream. */
        private Tensor stream(long width) {
            return backend.allocate(arena, backend.residualDType(model.dtype()), Shape.of(m, width));
        }

        private Tensor matrix(long width) {
            return backend.allocate(arena, model.dtype(), Shape.of(m, width));
        }

        private Tensor heads(Tensor matrix) {
            return matrix.splitLast(config.headDim());
        }

        private Tensor device(int[] contents) {
            Tensor device = backend.allocate(arena, DType.I32, Shape.of(contents.length));
            backend.upload(Tensor.of(arena, contents), device);
            return device;
        }
    }
}
