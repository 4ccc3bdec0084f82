package dev.penumbra.sparse;

import dev.penumbra.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;

/**
 * In which order an MLP's neurons lie in memory: a permutation of fc1's rows and bias and of fc2's columns, which leaves the
 * MLP's function as it is and decides which neurons share a block.
 */
public final class NeuronOrder {

    private final int[] order;

    /** @param order the original neuron at each place; every neuron once */
    public NeuronOrder(int... order) {
        boolean[] seen = new boolean[order.length];
        for (int place = 0; place < order.length; place++) {
            int neuron = order[place];
            if (neuron < 0 || neuron >= order.length || seen[neuron]) {
                throw new IllegalArgumentException("expected each neuron from 0 to " + (order.length - 1)
                        + " once in an order, found " + neuron + (neuron >= 0 && neuron < order.length ? " again" : "")
                        + " at place " + place);
            }
            seen[neuron] = true;
        }
        this.order = order.clone();
    }

    public static NeuronOrder identity(int neurons) {
        int[] order = new int[neurons];
        Arrays.setAll(order, i -> i);
        return new NeuronOrder(order);
    }

    public int neurons() {
        return order.length;
    }

    /** The original neuron at a place. */
    public int at(int place) {
        return order[place];
    }

    public int[] toArray() {
        return order.clone();
    }

    public boolean isIdentity() {
        for (int i = 0; i < order.length; i++) {
            if (order[i] != i) {
                return false;
            }
        }
        return true;
    }

    /** The order that undoes this one: at each original neuron, its place. */
    public NeuronOrder inverse() {
        int[] places = new int[order.length];
        for (int place = 0; place < order.length; place++) {
            places[order[place]] = place;
        }
        return new NeuronOrder(places);
    }

    /** Values by original neuron become values by place. */
    public float[] apply(float... values) {
        return applyToRows(values, 1);
    }

    /** Row {@code i} of the result is row {@code at(i)} of {@code values} [neurons, width]. */
    public float[] applyToRows(float[] values, int width) {
        requireSize(values.length, (long) order.length * width);
        float[] result = new float[values.length];
        for (int place = 0; place < order.length; place++) {
            System.arraycopy(values, order[place] * width, result, place * width, width);
        }
        return result;
    }

    /** Column {@code i} of the result is column {@code at(i)} of {@code values} [height, neurons]. */
    public float[] applyToColumns(float[] values, int height) {
        requireSize(values.length, (long) order.length * height);
        float[] result = new float[values.length];
        for (int row = 0; row < height; row++) {
            int from = row * order.length;
            for (int place = 0; place < order.length; place++) {
                result[from + place] = values[from + order[place]];
            }
        }
        return result;
    }

    /** Row {@code i} of {@code target} becomes row {@code at(i)} of {@code source}: host matrices [neurons, width]. */
    public void copyRows(Tensor source, Tensor target) {
        if (source.dtype() != target.dtype() || !source.shape().equals(target.shape())
                || source.shape().dim(0) != order.length) {
            throw new IllegalArgumentException(
                    "expected matrices of " + order.length + " rows and one dtype, found " + source + " and " + target);
        }
        MemorySegment from = source.segment();
        MemorySegment to = target.segment();
        long rowBytes = from.byteSize() / order.length;
        for (int place = 0; place < order.length; place++) {
            MemorySegment.copy(from, order[place] * rowBytes, to, place * rowBytes, rowBytes);
        }
    }

    private void requireSize(int found, long expected) {
        if (found != expected) {
            throw new IllegalArgumentException(
                    "expected " + expected + " values of " + order.length + " neurons, found " + found);
        }
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof NeuronOrder that && Arrays.equals(order, that.order);
    }

    @Override
    public int hashCode() {
        return Arrays.hashCode(order);
    }

    @Override
    public String toString() {
        return "order of " + order.length + " neurons";
    }
}
