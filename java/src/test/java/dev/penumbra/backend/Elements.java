package dev.penumbra.backend;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Element access to host tensors of any strides, for references and tests. */
public final class Elements {

    private Elements() {
    }

    public static double get(Tensor tensor, long... index) {
        MemorySegment memory = at(tensor, index);
        return switch (tensor.dtype()) {
            case F32 -> memory.get(ValueLayout.JAVA_FLOAT_UNALIGNED, 0);
            case BF16 -> Float.intBitsToFloat(memory.get(ValueLayout.JAVA_SHORT_UNALIGNED, 0) << 16);
            case F16 -> Float.float16ToFloat(memory.get(ValueLayout.JAVA_SHORT_UNALIGNED, 0));
            case I32 -> memory.get(ValueLayout.JAVA_INT_UNALIGNED, 0);
            case U8 -> Byte.toUnsignedInt(memory.get(ValueLayout.JAVA_BYTE, 0));
            case U64 -> memory.get(ValueLayout.JAVA_LONG_UNALIGNED, 0);
        };
    }

    public static int getInt(Tensor tensor, long... index) {
        return (int) get(tensor, index);
    }

    /** Rounds to the tensor's dtype, to nearest even. */
    public static void set(Tensor tensor, double value, long... index) {
        MemorySegment memory = at(tensor, index);
        switch (tensor.dtype()) {
            case F32 -> memory.set(ValueLayout.JAVA_FLOAT_UNALIGNED, 0, (float) value);
            case BF16 -> memory.set(ValueLayout.JAVA_SHORT_UNALIGNED, 0, bf16((float) value));
            case F16 -> memory.set(ValueLayout.JAVA_SHORT_UNALIGNED, 0, Float.floatToFloat16((float) value));
            case I32 -> memory.set(ValueLayout.JAVA_INT_UNALIGNED, 0, (int) value);
            case U8 -> memory.set(ValueLayout.JAVA_BYTE, 0, (byte) value);
            case U64 -> memory.set(ValueLayout.JAVA_LONG_UNALIGNED, 0, (long) value);
        }
    }

    public static void add(Tensor tensor, double value, long... index) {
        set(tensor, get(tensor, index) + value, index);
    }

    /** The value as {@code dtype} holds it. */
    public static double rounded(DType dtype, double value) {
        return switch (dtype) {
            case F32 -> (float) value;
            case BF16 -> Float.intBitsToFloat(bf16((float) value) << 16);
            case F16 -> Float.float16ToFloat(Float.floatToFloat16((float) value));
            default -> throw new IllegalArgumentException("expected a float dtype, found " + dtype);
        };
    }

    /** Calls {@code visitor} with every index, in row-major order. The array is reused. */
    public static void forEach(Shape shape, java.util.function.Consumer<long[]> visitor) {
        long[] index = new long[shape.rank()];
        for (long n = 0; n < shape.size(); n++) {
            long rest = n;
            for (int d = shape.rank() - 1; d >= 0; d--) {
                index[d] = rest % shape.dim(d);
                rest /= shape.dim(d);
            }
            visitor.accept(index);
        }
    }

    /** All elements in row-major order. */
    public static double[] toArray(Tensor tensor) {
        double[] values = new double[Math.toIntExact(tensor.shape().size())];
        int[] next = {0};
        forEach(tensor.shape(), index -> values[next[0]++] = get(tensor, index));
        return values;
    }

    private static short bf16(float value) {
        int bits = Float.floatToRawIntBits(value);
        if (Float.isNaN(value)) {
            return (short) ((bits >>> 16) | 0x40);
        }
        return (short) ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16);
    }

    private static MemorySegment at(Tensor tensor, long... index) {
        long offset = 0;
        for (int d = 0; d < index.length; d++) {
            if (index[d] < 0 || index[d] >= tensor.shape().dim(d)) {
                throw new IndexOutOfBoundsException(
                        "expected index " + d + " in [0, " + tensor.shape().dim(d) + "), found " + index[d]);
            }
            offset += index[d] * tensor.stride(d);
        }
        int size = tensor.dtype().byteSize();
        return MemorySegment.ofAddress(tensor.address() + offset * size).reinterpret(size);
    }
}
