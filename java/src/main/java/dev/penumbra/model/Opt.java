package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.internal.Counted;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.AdaptableLayer;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** OPT with frozen weights, pre-norm and post-norm (OPT-350m), with its tied or own head. */
public final class Opt implements LanguageModel {

    /** OPT's position table begins with two rows that no position uses. */
    static final int POSITION_OFFSET = 2;

    static final float EPSILON = 1e-5f;

    private final Backend backend;
    private final OptConfig config;
    private final DType dtype;
    private final Arena owner;
    private final ModelFolder folder;
    private final List<NeuronOrder> orders;
    private final OptWeights planned;
    private @Nullable OptWeights loaded;
    private @Nullable String sampledWeightsHash;
    private final List<AdaptableLayer> adaptable = new ArrayList<>();

    private Opt(Backend backend, Arena owner, ModelFolder folder, OptConfig config, DType dtype, List<NeuronOrder> orders)
            throws IOException {
        this.backend = backend;
        this.owner = owner;
        this.folder = folder;
        this.config = config;
        this.dtype = dtype;
        this.orders = List.copyOf(orders);
        if (!orders.isEmpty() && (orders.size() != config.numHiddenLayers()
                || orders.stream().anyMatch(order -> order.neurons() != config.ffnDim()))) {
            throw new ModelException(folder.directory() + ": expected an order of " + config.ffnDim()
                    + " neurons for each of " + config.numHiddenLayers() + " layers, found " + orders);
        }
        planned = new OptWeights(backend, owner, folder, config, dtype, orders, true);
        int h = config.hiddenSize();
        for (int i = 0; i < config.numHiddenLayers(); i++) {
            String at = "layers." + i + ".";
            for (String kind : List.of("q_proj", "k_proj", "v_proj", "out_proj")) {
                adaptable.add(new AdaptableLayer(i, kind, at + "self_attn." + kind, h, h));
            }
            NeuronOrder order = neuronOrder(i);
            adaptable.add(new AdaptableLayer(i, "fc1", at + "fc1", h, config.ffnDim(), null, order));
            adaptable.add(new AdaptableLayer(i, "fc2", at + "fc2", config.ffnDim(), h, order, null));
        }
    }

    /**
     * Reads the configuration and checks that all weights are there, without reading them: that is {@link #load()}'s, until
     * when the folder stays open. They will live as long as {@code owner}.
     *
     * @param compute what products are computed in: F32 or BF16
     * @throws ModelException naming the file and the key or tensor that is not as expected
     */
    public static Opt open(Backend backend, Arena owner, ModelFolder folder, DType compute) throws IOException {
        return open(backend, owner, folder, compute, List.of());
    }

    /**
     * As {@link #open(Backend, Arena, ModelFolder, DType)}, with the MLPs' neurons in another order, which changes no result.
     *
     * @param orders one a layer; empty: the checkpoint's own
     */
    public static Opt open(Backend backend, Arena owner, ModelFolder folder, DType compute, List<NeuronOrder> orders)
            throws IOException {
        if (compute != DType.F32 && compute != DType.BF16) {
            throw new IllegalArgumentException("expected F32 or BF16 to compute in, found " + compute);
        }
        OptConfig config = OptConfig.parse(folder.config(), folder.directory().resolve("config.json"));
        return new Opt(backend, owner, folder, config, compute, orders);
    }

    /** Opens a model and loads its weights; the folder may be closed after. */
    public static Opt load(Backend backend, Arena owner, ModelFolder folder, DType compute) throws IOException {
        Opt model = open(backend, owner, folder, compute);
        model.load();
        return model;
    }

    @Override
    public void load() throws IOException {
        if (loaded == null) {
            MemoryPlan plan = new MemoryPlan();
            describeWeights(plan);
            plan.requireFits(backend);
            sampledWeightsHash = folder.sampledWeightsHash();
            loaded = new OptWeights(backend, owner, folder, config, dtype, orders, false);
        }
    }

    public OptConfig config() {
        return config;
    }

    /** Those that are planned, until they are loaded. */
    OptWeights weights() {
        return loaded == null ? planned : loaded;
    }

    private void requireLoaded() {
        if (loaded == null) {
            throw new IllegalStateException("expected loaded weights: this model was only opened");
        }
    }

    @Override
    public Backend backend() {
        return backend;
    }

    @Override
    public DType dtype() {
        return dtype;
    }

    @Override
    public int vocabSize() {
        return config.vocabSize();
    }

    @Override
    public int maxPositions() {
        return config.maxPositionEmbeddings();
    }

    @Override
    public Path directory() {
        return folder.directory();
    }

    @Override
    public String sampledWeightsHash() {
        if (sampledWeightsHash == null) {
            throw new IllegalStateException(folder.directory() + ": expected a loaded model, found one that is not");
        }
        return sampledWeightsHash;
    }

    @Override
    public List<AdaptableLayer> adaptableLayers() {
        return List.copyOf(adaptable);
    }

    @Override
    public String peftPrefix() {
        return "base_model.model.model.decoder.";
    }

    @Override
    public void describeWeights(MemoryPlan plan) {
        for (OptWeights.Entry entry : planned.entries) {
            plan.addWeight(entry.name(), entry.bytes(), entry.parameters(), loaded != null);
        }
    }

    @Override
    public int mlpLayers() {
        return config.numHiddenLayers();
    }

    @Override
    public int mlpNeurons() {
        return config.ffnDim();
    }

    @Override
    public int attentionHeads() {
        return config.numAttentionHeads();
    }

    @Override
    public boolean hasNormBeforeAttention(int layer) {
        return config.doLayerNormBefore() || layer > 0;
    }

    @Override
    public @Nullable NeuronOrder neuronOrder(int layer) {
        return orders.isEmpty() ? null : orders.get(layer);
    }

    @Override
    public NeuronNorms neuronNorms(int layer) throws IOException {
        String at = folder.decoderPrefix() + "layers." + layer + ".";
        float[] fc1 = NeuronRows.rowNorms(folder.tensor(at + "fc1.weight", config.ffnDim(), config.hiddenSize()));
        folder.release(at + "fc1.weight");
        float[] fc2 = NeuronRows.columnNorms(folder.tensor(at + "fc2.weight", config.hiddenSize(), config.ffnDim()));
        folder.release(at + "fc2.weight");
        NeuronOrder order = neuronOrder(layer);
        return order == null ? new NeuronNorms(fc1, fc2) : new NeuronNorms(order.apply(fc1), order.apply(fc2));
    }

    @Override
    public Tensor fc1(int layer) throws IOException {
        return folder.tensor(folder.decoderPrefix() + "layers." + layer + ".fc1.weight", config.ffnDim(),
                config.hiddenSize());
    }

    @Override
    public void planPass(MemoryPlan plan, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options) {
        OptPass.plan(this, adapter, shape, options, plan);
    }

    @Override
    public ModelPass openPass(Arena owner, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options) {
        requireLoaded();
        long shared = OptPass.plan(this, adapter, shape, options, new MemoryPlan());
        return new OptPass(this, adapter, shape, options, Buffers.allocating(backend, owner, shared));
    }

    @Override
    public KeyValueCache openCache(Arena owner, @Nullable LoraAdapter adapter, int capacity) {
        requireLoaded();
        return new OptCache(this, adapter, capacity, owner);
    }

    /** The weights live as long as the arena they were loaded into; nothing else is held. */
    @Override
    public void close() {
    }

    @Override
    public String toString() {
        return "OPT of " + Counted.of(config.numHiddenLayers(), "layer") + ", hidden size " + config.hiddenSize() + ", "
                + Counted.of(config.numAttentionHeads(), "head") + ", " + config.ffnDim() + " neurons, in " + dtype + " on "
                + backend.device() + (loaded == null ? ", not loaded" : "");
    }
}
