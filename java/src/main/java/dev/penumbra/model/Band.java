package dev.penumbra.model;

import dev.penumbra.tensor.Tensor;

/** Neighbouring rows of a batch that an MLP computes at a time; {@code index} counts them. */
record Band(int index, int from, int to) {

    int rows() {
        return to - from;
    }

    /** Its rows of a buffer over the batch. */
    Tensor of(Tensor buffer) {
        return buffer.slice(0, from, to);
    }
}
