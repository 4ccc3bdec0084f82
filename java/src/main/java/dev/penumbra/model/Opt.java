package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.AdaptableLayer;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.lang.foreign.Arena;
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
    private final OptWeights planned;
    private @Nullable OptWeights loaded;
    private final List<AdaptableLayer> adaptable = new ArrayList<>();

    private Opt(Backend backend, Arena owner, ModelFolder folder, OptConfig config, DType dtype) throws IOException {
        this.backend = backend;
        this.owner = owner;
        this.folder = folder;
        this.config = config;
        this.dtype = dtype;
        planned = new OptWeights(backend, owner, folder, config, dtype, true);
        int h = config.hiddenSize();
        for (int i = 0; i < config.numHiddenLayers(); i++) {
            String at = "layers." + i + ".";
            for (String kind : List.of("q_proj", "k_proj", "v_proj", "out_proj")) {
                adaptable.add(new AdaptableLayer(i, kind, at + "self_attn." + kind, h, h));
            }
            adaptable.add(new AdaptableLayer(i, "fc1", at + "fc1", h, config.ffnDim()));
            adaptable.add(new AdaptableLayer(i, "fc2", at + "fc2", config.ffnDim(), h));
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
        if (compute != DType.F32 && compute != DType.BF16) {
            throw new IllegalArgumentException("expected F32 or BF16 to compute in, found " + compute);
        }
        OptConfig config = OptConfig.parse(folder.config(), folder.directory().resolve("config.json"));
        return new Opt(backend, owner, folder, config, compute);
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
            loaded = new OptWeights(backend, owner, folder, config, dtype, false);
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
    public void planPass(MemoryPlan plan, @Nullable LoraAdapter adapter, PassShape shape) {
        plan.add(MemoryPlan.Kind.WORKSPACE, "workspace", OptPass.plan(this, adapter, shape, plan));
    }

    @Override
    public ModelPass openPass(Arena owner, @Nullable LoraAdapter adapter, PassShape shape) {
        requireLoaded();
        long workspace = OptPass.plan(this, adapter, shape, new MemoryPlan());
        return new OptPass(this, adapter, shape, Buffers.allocating(backend, owner, workspace));
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
}
