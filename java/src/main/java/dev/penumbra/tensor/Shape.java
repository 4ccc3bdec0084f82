package dev.penumbra.tensor;

import java.util.Arrays;

/** Sizes of a tensor's dimensions: 1 to 4 of them, none negative. Immutable. */
public final class Shape {

    public static final int MAX_RANK = 4;

    private final long[] dims;

    private Shape(long[] dims) {
        this.dims = dims;
    }

    /** @throws IllegalArgumentException when there are none or more than {@link #MAX_RANK}, or one is negative */
    public static Shape of(long... dims) {
        if (dims.length < 1 || dims.length > MAX_RANK) {
            throw new IllegalArgumentException("expected 1 to " + MAX_RANK + " dimensions, found " + Arrays.toString(dims));
        }
        long count = 1;
        for (long dim : dims) {
            if (dim < 0) {
                throw new IllegalArgumentException("expected dimensions of 0 or more, found " + Arrays.toString(dims));
            }
            count = Math.multiplyExact(count, dim);
        }
        return new Shape(dims.clone());
    }

    public int rank() {
        return dims.length;
    }

    /** The size of a dimension, counted from 0, the outermost. */
    public long dim(int index) {
        return dims[index];
    }

    public long[] dims() {
        return dims.clone();
    }

    /** The number of elements. */
    public long size() {
        long count = 1;
        for (long dim : dims) {
            count *= dim;
        }
        return count;
    }

    /** Strides, in elements, of a contiguous row-major tensor of this shape. */
    public long[] contiguousStrides() {
        long[] strides = new long[dims.length];
        long stride = 1;
        for (int i = dims.length - 1; i >= 0; i--) {
            strides[i] = stride;
            stride *= dims[i];
        }
        return strides;
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof Shape shape && Arrays.equals(dims, shape.dims);
    }

    @Override
    public int hashCode() {
        return Arrays.hashCode(dims);
    }

    @Override
    public String toString() {
        return Arrays.toString(dims);
    }
}
