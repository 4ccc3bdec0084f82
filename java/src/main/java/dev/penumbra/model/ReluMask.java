package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Which of a layer's MLP neurons each token activates: those whose ReLU gives more than 0.
 *
 * @param layer index of the decoder layer
 * @param neurons rows of fc1
 * @param bits u8 [tokens, ceil(neurons / 8)] on the pass's backend: bit (j mod 8) of byte j / 8 stands for neuron j
 */
public record ReluMask(int layer, int neurons, Tensor bits) {

    public ReluMask {
        if (bits.dtype() != DType.U8 || bits.shape().rank() != 2 || bits.shape().dim(1) != Math.ceilDiv(neurons, 8)) {
            throw new IllegalArgumentException(
                    "expected bits of " + neurons + " neurons, U8[tokens, " + Math.ceilDiv(neurons, 8) + "], found " + bits);
        }
    }

    /** The share of activations that are 0, over all tokens and neurons, from 0 to 1. Waits for the pass. */
    public double zeroShare(Backend backend) {
        long tokens = bits.shape().dim(0);
        long rowBytes = bits.shape().dim(1);
        // Bits after the last neuron say nothing.
        int lastByte = neurons % 8 == 0 ? 0xFF : (1 << neurons % 8) - 1;
        long active = 0;
        try (Arena arena = Arena.ofConfined()) {
            Tensor host = Tensor.allocate(arena, DType.U8, bits.shape());
            backend.download(bits, host);
            MemorySegment bytes = host.segment();
            for (long i = 0; i < bytes.byteSize(); i++) {
                int counted = (i + 1) % rowBytes == 0 ? lastByte : 0xFF;
                active += Integer.bitCount(bytes.get(ValueLayout.JAVA_BYTE, i) & counted);
            }
        }
        return 1 - (double) active / (tokens * neurons);
    }
}
