package dev.penumbra.model;

import dev.penumbra.tensor.Tensor;

/** A sparse pass's lists of blocks, of its MLPs' neurons or of its attention's keys, seen from outside. */
public interface BlockChoice {

    /** Whether a layer has blocks to choose; others are dense. */
    boolean isSparse(int layer);

    /** Whether the loaded batch is computed by lists; one in which they save nothing is dense. */
    boolean hasLists();

    /**
     * f32 [layers, 3] on the device, of the last sparse batch: the part of the blocks that were chosen, their part of the
     * scores' sum, and the part of the lists that wanted more than fit. Rows of dense layers mean nothing.
     */
    Tensor summaries();

    /**
     * Which part of the masses that {@link ModelPass#sense} kept last the lists made since cover, by layer; 1 in dense layers.
     * Waits.
     *
     * @throws IllegalStateException when the pass was opened without measurements
     */
    double[] coverage();

    /**
     * How much more than its layer's coverage a list is asked for: every second step halves what is left uncovered, from the
     * next {@link ModelPass#load} on. Below 0: less.
     */
    void tighten(int steps);
}
