package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.lora.AdaptableLayer;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** A causal language model with frozen weights, resident on one backend. */
public interface LanguageModel extends AutoCloseable {

    Backend backend();

    /** What products are computed in, and activations stored as: F32 or BF16. */
    DType dtype();

    int vocabSize();

    /** The longest sample the learned positions allow. */
    int maxPositions();

    /** @throws IllegalArgumentException when rows of so many tokens are longer than {@link #maxPositions} */
    default void requirePositions(int seqLen) {
        if (seqLen > maxPositions()) {
            throw new IllegalArgumentException("expected a sequence length of at most " + maxPositions()
                    + ", the model's positions, found " + seqLen);
        }
    }

    /** The folder that it was read from, which its adapters name as their base model. */
    Path directory();

    /**
     * {@link dev.penumbra.io.ModelFolder#sampledWeightsHash} of the checkpoint, once it is loaded.
     *
     * @throws IllegalStateException before
     */
    String sampledWeightsHash();

    /** Every layer that an adapter may sit on, in the forward pass's order. */
    List<AdaptableLayer> adaptableLayers();

    /** What PEFT puts before an adaptable layer's name: "base_model.model.model.decoder.". */
    String peftPrefix();

    /**
     * Reads and packs the weights, unless that is done already. Before, a model can be asked, planned and given an adapter, but
     * not run.
     */
    void load() throws IOException;

    /** Adds the weights to a plan, each with its packed bytes; resident once they are loaded. */
    void describeWeights(MemoryPlan plan);

    /** Layers that have an MLP. */
    int mlpLayers();

    /** Neurons of a layer's MLP: rows of fc1. */
    int mlpNeurons();

    /** Heads of a layer's attention; as many layers have one as have an MLP. */
    int attentionHeads();

    /** Whether a norm comes before a layer's queries and keys: what is pooled for predictions is its output. */
    boolean hasNormBeforeAttention(int layer);

    /** How a layer's neurons lie in memory; null: as in the checkpoint. */
    @Nullable
    NeuronOrder neuronOrder(int layer);

    /** How large each neuron's weights are, by the neurons' places. Reads the checkpoint: its folder must be open. */
    NeuronNorms neuronNorms(int layer) throws IOException;

    /** fc1 [neurons, hidden] as stored, in the checkpoint's order; a view of its file, which must be open. */
    Tensor fc1(int layer) throws IOException;

    /** Adds what {@link #openPass} would allocate; allocates nothing. */
    void planPass(MemoryPlan plan, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options);

    default void planPass(MemoryPlan plan, @Nullable LoraAdapter adapter, PassShape shape) {
        planPass(plan, adapter, shape, PassOptions.DENSE);
    }

    /** Allocates the buffers of forward (and backward) passes up to the given size; they live as long as {@code owner}. */
    ModelPass openPass(Arena owner, @Nullable LoraAdapter adapter, PassShape shape, PassOptions options);

    default ModelPass openPass(Arena owner, @Nullable LoraAdapter adapter, PassShape shape) {
        return openPass(owner, adapter, shape, PassOptions.DENSE);
    }

    /**
     * A generator's state over one sample: keys and values of all its tokens so far; it lives as long as {@code owner}.
     *
     * @param capacity most tokens
     * @throws ModelException when that is more than the model's positions
     */
    KeyValueCache openCache(Arena owner, @Nullable LoraAdapter adapter, int capacity);

    @Override
    void close();
}
