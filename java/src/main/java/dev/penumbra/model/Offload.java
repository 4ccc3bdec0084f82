package dev.penumbra.model;

import dev.penumbra.backend.HostStore;
import dev.penumbra.tensor.Tensor;
import java.util.ArrayList;
import java.util.List;
import java.util.function.IntFunction;

/**
 * Keeps what the lowest layers' forward passes leave for their backward passes in host memory meanwhile, so that as many of the
 * highest layers, the guests, can have the same device memory. Copies run beside the layers between the two.
 */
final class Offload {

    /**
     * To the host go 12 h bytes of a layer a token, at 55 GB/s; its forward pass is 24 h^2 operations, at 750 TFLOP/s or less: at this
     * hidden size both take as long.
     */
    private static final int HIDDEN_SIZE_THAT_HIDES_A_COPY = 7000;

    private final int lowest;
    private final int layers;
    private final int count;
    private final List<HostStore> stores = new ArrayList<>();

    /**
     * @param lowest first layer that has a backward pass
     * @param wanted layers to offload, or {@link PassOptions#AUTOMATIC}
     * @param automatic what that means here
     * @throws ModelException when fewer can be: between a layer and its guest there is one at least
     */
    Offload(int lowest, int layers, int wanted, int automatic) {
        this.lowest = lowest;
        this.layers = layers;
        int most = Math.max(0, (layers - lowest - 1) / 2);
        if (wanted > most) {
            throw new ModelException("expected at most " + most + " layers to offload, of " + (layers - lowest)
                    + " that have a backward pass, found " + wanted);
        }
        count = wanted == PassOptions.AUTOMATIC ? Math.min(most, automatic) : wanted;
    }

    /** How many of a dense pass's layers can be copied while others compute. */
    static int hidden(int hiddenSize, int trainedLayers) {
        return Math.max(0, Math.toIntExact((long) (trainedLayers - 2) * hiddenSize / HIDDEN_SIZE_THAT_HIDES_A_COPY));
    }

    /** @param activations of a layer, those that are offloaded, at their largest */
    void allocate(Buffers buffers, IntFunction<List<Tensor>> activations) {
        for (int i = lowest; i < lowest + count; i++) {
            long bytes = activations.apply(i).stream().mapToLong(Tensor::byteSize).sum();
            stores.add(buffers.hostStore("layers." + i + " activations", bytes));
        }
    }

    boolean isGuest(int layer) {
        return layer >= layers - count && layer < layers;
    }

    /** The layer whose device memory a guest has. */
    int host(int guest) {
        return lowest + guest - (layers - count);
    }

    private boolean isHost(int layer) {
        return layer >= lowest && layer < lowest + count;
    }

    private HostStore storeOf(int host) {
        return stores.get(host - lowest);
    }

    /** The layer before a guest writes the guest's input. */
    void beforeForward(int layer) {
        if (isGuest(layer + 1)) {
            storeOf(host(layer + 1)).await();
        }
    }

    /** @param activations of a layer, those that are offloaded: the batch's rows of them */
    void afterForward(int layer, IntFunction<List<Tensor>> activations) {
        if (isHost(layer)) {
            storeOf(layer).store(activations.apply(layer));
        }
    }

    void beforeBackward(int layer) {
        if (isHost(layer)) {
            storeOf(layer).await();
        }
    }

    /** @param activations as in {@link #afterForward} */
    void afterBackward(int layer, IntFunction<List<Tensor>> activations) {
        if (isGuest(layer)) {
            storeOf(host(layer)).restore(activations.apply(host(layer)));
        }
    }
}
