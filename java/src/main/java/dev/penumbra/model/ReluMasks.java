package dev.penumbra.model;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.EnumSet;
import org.jspecify.annotations.Nullable;

/**
 * ReLU's bits of every layer's MLP, u8 [capacity, bytes]: by neuron, or, of layers whose forward pass goes by lists, as compact
 * as their activation. Where these are computed densely all the same, there are bits for one band of rows, and nobody keeps
 * them. Layers below the lowest adapter share theirs.
 */
final class ReluMasks {

    private final Tensor[] kept;
    private final boolean[] compact;
    /** Of one band by neuron; null where no layer's are compact. */
    private final @Nullable Tensor passing;

    /**
     * @param lowest first layer that has a backward pass
     * @param bandRows rows of the largest band
     */
    ReluMasks(Buffers buffers, OptConfig config, PassShape shape, int lowest, @Nullable MlpSelection selection,
            int bandRows) {
        int layers = config.numHiddenLayers();
        int capacity = shape.capacity();
        int byNeuron = Math.ceilDiv(config.ffnDim(), 8);
        kept = new Tensor[layers];
        compact = new boolean[layers];
        int[] bytes = new int[layers];
        boolean anyCompact = false;
        int widestShared = 0;
        for (int i = 0; i < layers; i++) {
            compact[i] = selection != null && selection.isCompact(i) && !shape.keepsReluMasks();
            anyCompact |= compact[i];
            bytes[i] = compact[i] ? selection.width(i) / 8 : byNeuron;
            if (!isSaved(i, lowest, shape)) {
                widestShared = Math.max(widestShared, bytes[i]);
            }
        }
        Tensor shared = widestShared == 0
                ? null
                : buffers.activations("shared relu mask", DType.U8, (long) capacity * widestShared);
        for (int i = 0; i < layers; i++) {
            kept[i] = isSaved(i, lowest, shape)
                    ? buffers.activations("layers." + i + ".relu mask", DType.U8, capacity, bytes[i])
                    : shared.slice(0, 0, (long) capacity * bytes[i]).reshape(capacity, bytes[i]);
        }
        passing = anyCompact
                ? buffers.passing(EnumSet.of(Stage.MLP, Stage.MLP_BACKWARD), DType.U8, bandRows, byNeuron)
                : null;
    }

    private static boolean isSaved(int layer, int lowest, PassShape shape) {
        return layer >= lowest || shape.keepsReluMasks();
    }

    /** Whether a dense run's bits of a layer are gone with their band. */
    boolean isCompact(int layer) {
        return compact[layer];
    }

    /** A band's, where all neurons are computed: [rows, ceil(neurons / 8)]. */
    Tensor dense(int layer, Band band) {
        return compact[layer] ? passing.slice(0, 0, band.rows()) : band.of(kept[layer]);
    }

    /** A band's, where the listed neurons are computed. */
    Tensor listed(int layer, Band band) {
        return band.of(kept[layer]);
    }
}
