package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * The buffers that a pass's layers write, and their gradients, [capacity, width] each. What a backward pass reads is kept; the
 * layers below the lowest adapter, which have none, share one set and write their output over their input. The residual stream
 * (inputs, outputs and what lies between the sublayers) has the backend's {@link Backend#residualDType dtype} for it, gradients
 * and all else the model's.
 */
final class OptActivations {

    private final Tensor[] x;
    private final LayerBuffers[] layers;
    private final ReluMasks reluMasks;
    private final @Nullable Tensor productInput;
    private final @Nullable Tensor judgedHeads;
    private final @Nullable Tensor dX;
    private final @Nullable Tensor dBranch;
    private final @Nullable Tensor dQkv;

    /**
     * @param lowest first layer that has a backward pass
     * @param recomputes whether some layer's backward pass computes fc1's output again
     * @param lossOnly whether the last layer may leave rows out
     * @param offload which layers have the largest of their buffers together
     * @param dX the gradient of a layer's output, and of its input then; null where none is computed
     */
    OptActivations(Opt model, @Nullable LoraAdapter adapter, Buffers buffers, PassShape shape, int lowest,
            boolean recomputes, ReluMasks reluMasks, boolean lossOnly, Offload offload,
            @Nullable Tensor dX) {
        OptConfig config = model.config();
        int capacity = shape.capacity();
        int h = config.hiddenSize();
        int count = config.numHiddenLayers();
        x = new Tensor[count + 1];
        layers = new LayerBuffers[count];
        this.reluMasks = reluMasks;
        this.dX = dX;
        DType residual = model.backend().residualDType(model.dtype());
        boolean preNorm = config.doLayerNormBefore();
        productInput = preNorm || residual != model.dtype()
                ? buffers.passing(readsProductInput(preNorm, recomputes), model.dtype(), capacity, h)
                : null;
        judgedHeads = lossOnly ? buffers.passing(EnumSet.of(Stage.ATTENTION), model.dtype(), capacity, h) : null;
        LayerBuffers shared = lowest == 0
                ? null
                : new LayerBuffers(buffers, config, model.dtype(), residual, capacity, "shared ", null);
        x[0] = buffers.activations("layers.0 input", residual, capacity, h);
        for (int i = 0; i < count; i++) {
            String at = "layers." + i + ".";
            boolean saved = i >= lowest;
            LayerBuffers host = offload.isGuest(i) ? layers[offload.host(i)] : null;
            layers[i] = saved ? new LayerBuffers(buffers, config, model.dtype(), residual, capacity, at, host) : shared;
            if (offload.isGuest(i + 1)) {
                x[i + 1] = x[offload.host(i + 1)];
            } else {
                x[i + 1] = saved ? buffers.activations(at + "output", residual, capacity, h) : x[i];
            }
            for (Site site : sites(adapter, i)) {
                if (saved || !layers[i].h.containsKey(site.layer().kind())) {
                    layers[i].allocateH(buffers, saved ? at : "shared ", site, capacity);
                }
            }
        }
        boolean training = shape.training();
        dBranch = training
                ? buffers.passing(EnumSet.of(Stage.MLP_BACKWARD, Stage.ATTENTION_BACKWARD), model.dtype(), capacity, h)
                : null;
        dQkv = training ? buffers.passing(EnumSet.of(Stage.ATTENTION_BACKWARD), model.dtype(), capacity, 3L * h) : null;
    }

    /** Where the backward pass needs a norm's output, adapters read it from the norm's input as it is in memory. */
    private static Set<Stage> readsProductInput(boolean preNorm, boolean recomputes) {
        Set<Stage> stages = EnumSet.of(Stage.ATTENTION, Stage.MLP);
        if (!preNorm || recomputes) {
            stages.add(Stage.MLP_BACKWARD);
        }
        if (!preNorm) {
            stages.add(Stage.ATTENTION_BACKWARD);
        }
        return stages;
    }

    private static List<Site> sites(@Nullable LoraAdapter adapter, int layer) {
        return adapter == null
                ? List.of()
                : adapter.sites().stream().filter(site -> site.layer().layer() == layer).toList();
    }

    int layers() {
        return layers.length;
    }

    /** What a layer reads; of the first, the embedded tokens. */
    Tensor input(int layer) {
        return x[layer];
    }

    Tensor output(int layer) {
        return x[layer + 1];
    }

    LayerBuffers layer(int layer) {
        return layers[layer];
    }

    /**
     * What a product reads of the residual stream, in the model's dtype: its norm, or (post-norm) itself, rounded. Nobody keeps
     * it. Null where products read the stream as it is.
     */
    @Nullable
    Tensor productInput() {
        return productInput;
    }

    /** What the last layer's heads give, of the rows that a loss reads; null where it computes all. */
    @Nullable
    Tensor judgedHeads() {
        return judgedHeads;
    }

    /** Which of a layer's neurons fire. */
    ReluMasks reluMasks() {
        return reluMasks;
    }

    /** The gradient that flows down past the sublayers: of a layer's output first, then of what lies before it. */
    Tensor dX() {
        return dX;
    }

    /** The gradient within a sublayer. */
    Tensor dBranch() {
        return dBranch;
    }

    /** [capacity, 3 hidden], of queries, keys and values. */
    Tensor dQkv() {
        return dQkv;
    }
}
