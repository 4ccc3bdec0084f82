package dev.penumbra.tensor;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

/**
 * A typed, strided view of memory that an arena owns. Views share the memory; closing the arena ends them all, and using
 * one after that throws {@link IllegalStateException}.
 *
 * <p>A shape, range or value that does not fit is an {@link IllegalArgumentException} or {@link IndexOutOfBoundsException}; asking
 * for contents that Java cannot read so, a device's or those of another dtype or not contiguous, an {@link IllegalStateException}.
 *
 * <p>Memory of a device other than the host is a segment of size zero that carries the address and the lifetime: reading
 * it from Java throws, handing its {@link #address()} to the device works.
 */
public final class Tensor {

    private static final long ALIGNMENT = 256;

    /** Some address, because an address of 0 says "absent". */
    private static final MemorySegment PLANNED = MemorySegment.ofAddress(ALIGNMENT);

    private final DType dtype;
    private final Shape shape;
    private final long[] strides;
    private final MemorySegment base;
    private final long byteOffset;
    private final boolean host;

    private Tensor(DType dtype, Shape shape, long[] strides, MemorySegment base, long byteOffset, boolean host) {
        this.dtype = dtype;
        this.shape = shape;
        this.strides = strides;
        this.base = base;
        this.byteOffset = byteOffset;
        this.host = host;
    }

    /** Allocates zeroed host memory that lives as long as {@code owner}. */
    public static Tensor allocate(Arena owner, DType dtype, Shape shape) {
        long bytes = Math.max(1, shape.size() * dtype.byteSize());
        return view(owner.allocate(bytes, ALIGNMENT), dtype, shape);
    }

    /** A contiguous view of host memory; the segment may start at any byte. */
    public static Tensor view(MemorySegment segment, DType dtype, Shape shape) {
        long bytes = shape.size() * dtype.byteSize();
        if (segment.byteSize() < bytes) {
            throw new IllegalArgumentException(
                    "expected " + bytes + " bytes for " + dtype + " " + shape + ", found " + segment.byteSize());
        }
        return new Tensor(dtype, shape, shape.contiguousStrides(), segment, 0, true);
    }

    /** A contiguous view of device memory: a zero-length segment with the device's address and the owner's scope. */
    public static Tensor deviceView(MemorySegment address, DType dtype, Shape shape) {
        if (address.byteSize() != 0) {
            throw new IllegalArgumentException(
                    "expected a segment of size 0 for device memory, found " + address.byteSize());
        }
        return new Tensor(dtype, shape, shape.contiguousStrides(), address, 0, false);
    }

    /** The description of a tensor that no memory is behind: it can be sliced and asked for its shape, never read. */
    public static Tensor planned(DType dtype, Shape shape) {
        return deviceView(PLANNED, dtype, shape);
    }

    /** F32 [values.length] on the host, that lives as long as {@code owner}. */
    public static Tensor of(Arena owner, float... values) {
        Tensor tensor = allocate(owner, DType.F32, Shape.of(values.length));
        MemorySegment.copy(values, 0, tensor.base, ValueLayout.JAVA_FLOAT, 0, values.length);
        return tensor;
    }

    /** I32 [values.length] on the host, that lives as long as {@code owner}. */
    public static Tensor of(Arena owner, int... values) {
        Tensor tensor = allocate(owner, DType.I32, Shape.of(values.length));
        MemorySegment.copy(values, 0, tensor.base, ValueLayout.JAVA_INT, 0, values.length);
        return tensor;
    }

    public DType dtype() {
        return dtype;
    }

    public Shape shape() {
        return shape;
    }

    /** Elements from one index of a dimension to the next. */
    public long stride(int dim) {
        return strides[dim];
    }

    /** Whether Java can read and write it. */
    public boolean isHost() {
        return host;
    }

    /** Bytes of its elements, were they contiguous. */
    public long byteSize() {
        return shape.size() * dtype.byteSize();
    }

    /** The address of the first element, after a check that the owner is still open. */
    public long address() {
        if (!base.scope().isAlive()) {
            throw new IllegalStateException("expected an open owner: this " + this + " was closed");
        }
        return base.address() + byteOffset;
    }

    /** Whether its elements lie one after another in row-major order. */
    public boolean isContiguous() {
        long expected = 1;
        for (int i = strides.length - 1; i >= 0; i--) {
            if (shape.dim(i) != 1 && strides[i] != expected) {
                return false;
            }
            expected *= shape.dim(i);
        }
        return true;
    }

    /** The host memory of a contiguous tensor, exactly its bytes. */
    public MemorySegment segment() {
        if (!host) {
            throw new IllegalStateException("expected host memory, found a device's: download it first");
        }
        if (!isContiguous()) {
            throw new IllegalStateException("expected a contiguous tensor, found strides " + Arrays.toString(strides));
        }
        return base.asSlice(byteOffset, byteSize());
    }

    /** View of {@code [from, to)} along {@code dim}. */
    public Tensor slice(int dim, long from, long to) {
        if (from < 0 || to < from || to > shape.dim(dim)) {
            throw new IndexOutOfBoundsException(
                    "expected a range in [0, " + shape.dim(dim) + "], found [" + from + ", " + to + ")");
        }
        long[] dims = shape.dims();
        dims[dim] = to - from;
        return new Tensor(dtype, Shape.of(dims), strides, base, byteOffset + from * strides[dim] * dtype.byteSize(), host);
    }

    /** View with two dimensions exchanged. */
    public Tensor transpose(int dimA, int dimB) {
        long[] dims = shape.dims();
        long[] exchanged = strides.clone();
        dims[dimA] = shape.dim(dimB);
        dims[dimB] = shape.dim(dimA);
        exchanged[dimA] = strides[dimB];
        exchanged[dimB] = strides[dimA];
        return new Tensor(dtype, Shape.of(dims), exchanged, base, byteOffset, host);
    }

    /** View of a matrix with its dimensions exchanged. */
    public Tensor transpose() {
        if (shape.rank() != 2) {
            throw new IllegalStateException("expected a matrix, found " + shape);
        }
        return transpose(0, 1);
    }

    /** View of a contiguous tensor in another shape of as many elements. */
    public Tensor reshape(long... dims) {
        Shape target = Shape.of(dims);
        if (!isContiguous() || target.size() != shape.size()) {
            throw new IllegalArgumentException(
                    "expected a contiguous tensor of " + target.size() + " elements, found " + this);
        }
        return new Tensor(dtype, target, target.contiguousStrides(), base, byteOffset, host);
    }

    /** View of a contiguous vector's bytes as elements of another dtype. */
    public Tensor as(DType other) {
        if (shape.rank() != 1 || !isContiguous() || byteSize() % other.byteSize() != 0) {
            throw new IllegalArgumentException(
                    "expected a contiguous vector of whole " + other + " elements, found " + this);
        }
        Shape target = Shape.of(byteSize() / other.byteSize());
        return new Tensor(other, target, target.contiguousStrides(), base, byteOffset, host);
    }

    /** View of the last dimension split in two: [.., n] becomes [.., n / size, size]. */
    public Tensor splitLast(long size) {
        int last = shape.rank() - 1;
        if (shape.rank() == Shape.MAX_RANK || size <= 0 || shape.dim(last) % size != 0) {
            throw new IllegalArgumentException("expected a last dimension that " + size + " divides, found " + shape);
        }
        long[] dims = Arrays.copyOf(shape.dims(), last + 2);
        long[] split = Arrays.copyOf(strides, last + 2);
        dims[last] = shape.dim(last) / size;
        dims[last + 1] = size;
        split[last] = strides[last] * size;
        split[last + 1] = strides[last];
        return new Tensor(dtype, Shape.of(dims), split, base, byteOffset, host);
    }

    /** A contiguous host tensor's elements as floats, in row-major order; any float dtype. */
    public float[] toFloats() {
        MemorySegment memory = segment();
        float[] values = new float[Math.toIntExact(shape.size())];
        switch (dtype) {
            case F32 -> MemorySegment.copy(memory, ValueLayout.JAVA_FLOAT_UNALIGNED, 0, values, 0, values.length);
            case BF16 -> {
                for (int i = 0; i < values.length; i++) {
                    values[i] = Float.intBitsToFloat(memory.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i) << 16);
                }
            }
            case F16 -> {
                for (int i = 0; i < values.length; i++) {
                    values[i] = Float.float16ToFloat(memory.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i));
                }
            }
            default -> throw new IllegalStateException("expected a float dtype, found " + dtype);
        }
        return values;
    }

    /** A contiguous host I32 tensor's elements. */
    public int[] toInts() {
        if (dtype != DType.I32) {
            throw new IllegalStateException("expected I32, found " + dtype);
        }
        return segment().toArray(ValueLayout.JAVA_INT_UNALIGNED);
    }

    /** Writes a contiguous host tensor of any float dtype, in row-major order, rounded to the nearest: of two the even one. */
    public void copyFrom(float[] values) {
        if (!dtype.isFloat() || shape.size() != values.length) {
            throw new IllegalArgumentException(
                    "expected " + values.length + " elements of a float dtype, found " + this);
        }
        MemorySegment memory = segment();
        if (dtype == DType.F32) {
            MemorySegment.copy(values, 0, memory, ValueLayout.JAVA_FLOAT_UNALIGNED, 0, values.length);
            return;
        }
        for (int i = 0; i < values.length; i++) {
            short rounded = dtype == DType.BF16 ? bf16(values[i]) : Float.floatToFloat16(values[i]);
            memory.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, rounded);
        }
    }

    private static short bf16(float value) {
        int bits = Float.floatToRawIntBits(value);
        // Half of what is cut off carries into what stays; of a NaN it would make another number.
        int rounded = Float.isNaN(value) ? bits | 0x00400000 : bits + 0x7FFF + (bits >>> 16 & 1);
        return (short) (rounded >>> 16);
    }

    /** Writes a contiguous host I32 tensor. */
    public void copyFrom(int[] values) {
        if (dtype != DType.I32 || shape.size() != values.length) {
            throw new IllegalArgumentException("expected " + values.length + " elements of I32, found " + this);
        }
        MemorySegment.copy(values, 0, segment(), ValueLayout.JAVA_INT_UNALIGNED, 0, values.length);
    }

    @Override
    public String toString() {
        return dtype + shape.toString();
    }
}
