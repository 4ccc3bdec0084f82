package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import java.util.function.BiFunction;
import org.jspecify.annotations.Nullable;

/**
 * OPT's frozen weights on a backend: matrices packed in the compute dtype, biases and LayerNorm's parameters in f32, the
 * two embedding tables as rows.
 */
final class OptWeights {

    record LayerNorm(Tensor gamma, Tensor beta) {
    }

    record Linear(FrozenWeight weight, @Nullable Tensor bias) {
    }

    /**
     * One decoder layer; qkv is q_proj, k_proj and v_proj stacked: [3 h, h].
     *
     * @param fc2 transposed, [ffn, h]: like fc1 it has a row for each neuron, so that a block of neurons lies together; its
     *     forward product is the weight's {@code BACKWARD} use and the other way round
     */
    record Layer(LayerNorm attentionNorm, Linear qkv, Linear out, LayerNorm mlpNorm, Linear fc1, Linear fc2) {
    }

    /** @param parameters elements of the checkpoint that it holds; 0: they are another entry's too */
    record Entry(String name, long bytes, long parameters) {
    }

    final Tensor tokens;
    final Tensor positions;
    final @Nullable Linear projectIn;
    final List<Layer> layers = new ArrayList<>();
    final @Nullable LayerNorm finalNorm;
    final @Nullable Linear projectOut;
    final FrozenWeight head;
    final List<Entry> entries = new ArrayList<>();

    private final Backend backend;
    private final Arena owner;
    private final ModelFolder folder;
    private final DType compute;
    private final List<NeuronOrder> orders;
    private final boolean planning;

    /**
     * @param orders how each layer's neurons lie; empty: as in the checkpoint
     * @param planning only checks that the weights are there, by the headers of the folder's files, and describes what loading
     *     them would allocate
     */
    OptWeights(Backend backend, Arena owner, ModelFolder folder, OptConfig config, DType compute, List<NeuronOrder> orders,
            boolean planning) throws IOException {
        this.backend = backend;
        this.owner = owner;
        this.folder = folder;
        this.compute = compute;
        this.orders = orders;
        this.planning = planning;
        String prefix = folder.decoderPrefix();
        long h = config.hiddenSize();
        long f = config.ffnDim();
        long e = config.wordEmbedProjDim();
        boolean tied = config.tieWordEmbeddings() || !folder.has("lm_head.weight");
        String tokensName = prefix + "embed_tokens.weight";
        head = pack("lm_head", List.of(tied ? tokensName : "lm_head.weight"), config.vocabSize(), e, config.vocabSize() * e);
        Tensor shared = tied ? head.rows().orElse(null) : null;
        tokens = shared != null ? shared : table(tokensName, config.vocabSize(), e, tied ? 0 : config.vocabSize() * e);
        positions = table(prefix + "embed_positions.weight", config.maxPositionEmbeddings() + Opt.POSITION_OFFSET, h,
                (config.maxPositionEmbeddings() + Opt.POSITION_OFFSET) * h);
        projectIn = config.hasProjection() ? linear(prefix + "project_in", h, e, false) : null;
        projectOut = config.hasProjection() ? linear(prefix + "project_out", e, h, false) : null;
        for (int i = 0; i < config.numHiddenLayers(); i++) {
            String at = prefix + "layers." + i + ".";
            layers.add(new Layer(
                    layerNorm(at + "self_attn_layer_norm", h),
                    stacked(at + "self_attn.", List.of("q_proj", "k_proj", "v_proj"), h, h),
                    linear(at + "self_attn.out_proj", h, h, true),
                    layerNorm(at + "final_layer_norm", h),
                    fc1(at + "fc1", i, f, h),
                    fc2(at + "fc2", i, f, h)));
        }
        finalNorm = config.hasFinalLayerNorm() ? layerNorm(prefix + "final_layer_norm", h) : null;
    }

    private @Nullable NeuronOrder order(int layer) {
        return orders.isEmpty() || orders.get(layer).isIdentity() ? null : orders.get(layer);
    }

    private Linear fc1(String name, int layer, long neurons, long h) throws IOException {
        NeuronOrder order = order(layer);
        FrozenWeight weight = order == null
                ? pack(name, List.of(name + ".weight"), neurons, h, neurons * h)
                : packRows(name, checked(name + ".weight", neurons, h), neurons, h,
                        (arena, stored) -> NeuronRows.ofFc1(arena, stored, order));
        return new Linear(weight, vector(name + ".bias", List.of(name + ".bias"), neurons, order));
    }

    private Linear fc2(String name, int layer, long neurons, long h) throws IOException {
        FrozenWeight weight = packRows(name, checked(name + ".weight", h, neurons), neurons, h,
                (arena, stored) -> NeuronRows.ofFc2(arena, stored, order(layer)));
        return new Linear(weight, vector(name + ".bias", List.of(name + ".bias"), h));
    }

    /** Packs what {@code rows} makes of a stored matrix: [neurons, h]. */
    private FrozenWeight packRows(String name, Tensor stored, long neurons, long h, BiFunction<Arena, Tensor, Tensor> rows)
            throws IOException {
        FrozenWeight.Form form = form(name, neurons, h, neurons * h);
        if (planning) {
            return backend.planned(owner, form);
        }
        // Several threads write it.
        try (Arena arena = Arena.ofShared()) {
            FrozenWeight packed = backend.pack(owner, form, List.of(rows.apply(arena, stored)));
            folder.release(name + ".weight");
            return packed;
        }
    }

    /** Of a weight that is packed for both products, with an entry that describes it. */
    private FrozenWeight.Form form(String name, long out, long in, long parameters) {
        FrozenWeight.Form form = new FrozenWeight.Form(out, in, compute, true);
        entries.add(new Entry(name + " " + compute + " [" + out + ", " + in + "]", backend.packedBytes(form), parameters));
        return form;
    }

    private Linear linear(String name, long out, long in, boolean bias) throws IOException {
        FrozenWeight weight = pack(name, List.of(name + ".weight"), out, in, out * in);
        return new Linear(weight, bias ? vector(name + ".bias", List.of(name + ".bias"), out) : null);
    }

    private Linear stacked(String at, List<String> parts, long out, long in) throws IOException {
        List<String> weights = parts.stream().map(part -> at + part + ".weight").toList();
        List<String> biases = parts.stream().map(part -> at + part + ".bias").toList();
        return new Linear(pack(at + "qkv", weights, out, in, parts.size() * out * in),
                vector(at + "qkv.bias", biases, out));
    }

    private LayerNorm layerNorm(String name, long h) throws IOException {
        return new LayerNorm(
                vector(name + ".weight", List.of(name + ".weight"), h), vector(name + ".bias", List.of(name + ".bias"), h));
    }

    /** Matrices [out, in] of the folder, one below another. The mapped pages are given back: packing has copied them. */
    private FrozenWeight pack(String name, List<String> parts, long out, long in, long parameters) throws IOException {
        List<Tensor> weights = new ArrayList<>();
        for (String part : parts) {
            weights.add(checked(part, out, in));
        }
        FrozenWeight.Form form = new FrozenWeight.Form(out * parts.size(), in, compute, true);
        entries.add(new Entry(name + " " + compute + " [" + form.out() + ", " + in + "]", backend.packedBytes(form),
                parameters));
        if (planning) {
            return backend.planned(owner, form);
        }
        FrozenWeight packed = backend.pack(owner, form, weights);
        for (String part : parts) {
            folder.release(part);
        }
        return packed;
    }

    private Tensor vector(String name, List<String> parts, long n) throws IOException {
        return vector(name, parts, n, null);
    }

    /** f32 vectors of n elements each, one after another; of neurons, in their order. */
    private Tensor vector(String name, List<String> parts, long n, @Nullable NeuronOrder order) throws IOException {
        List<Tensor> stored = new ArrayList<>();
        for (String part : parts) {
            stored.add(checked(part, n));
        }
        Tensor device = allocate(name, DType.F32, Shape.of(n * parts.size()), n * parts.size());
        if (planning) {
            return device;
        }
        float[] values = new float[Math.toIntExact(n * parts.size())];
        for (int i = 0; i < parts.size(); i++) {
            float[] part = order == null ? stored.get(i).toFloats() : order.apply(stored.get(i).toFloats());
            System.arraycopy(part, 0, values, Math.toIntExact(i * n), part.length);
            folder.release(parts.get(i));
        }
        try (Arena arena = Arena.ofConfined()) {
            backend.upload(Tensor.of(arena, values), device);
        }
        return device;
    }

    /**
     * A table that rows are gathered from: as stored, but never wider than the compute dtype.
     *
     * @param parameters of the model that are not told elsewhere
     */
    private Tensor table(String name, long rows, long width, long parameters) throws IOException {
        Tensor stored = checked(name, rows, width);
        DType dtype = stored.dtype() == DType.F32 ? compute : stored.dtype();
        Tensor device = allocate(name, dtype, stored.shape(), parameters);
        if (planning) {
            return device;
        }
        if (dtype == stored.dtype()) {
            backend.upload(stored, device);
        } else {
            try (Arena arena = Arena.ofConfined()) {
                Tensor staged = backend.allocate(arena, stored.dtype(), stored.shape());
                backend.upload(stored, staged);
                backend.run(new Convert(staged, device));
                backend.synchronize();
            }
        }
        folder.release(name);
        return device;
    }

    private Tensor allocate(String name, DType dtype, Shape shape, long parameters) {
        Tensor device = planning ? Tensor.planned(dtype, shape) : backend.allocate(owner, dtype, shape);
        entries.add(new Entry(name, device.byteSize(), parameters));
        return device;
    }

    private Tensor checked(String name, long... shape) throws IOException {
        Tensor tensor = folder.tensor(name, shape);
        if (!tensor.dtype().isFloat()) {
            throw new ModelException(folder.directory() + ": tensor " + name + ": expected F32, BF16 or F16, found "
                    + tensor.dtype());
        }
        long at = planning ? -1 : backend.findNotFinite(tensor);
        if (at >= 0) {
            throw new ModelException(folder.directory() + ": tensor " + name
                    + ": expected finite weights, found NaN or infinity at element " + at);
        }
        return tensor;
    }
}
