package dev.penumbra.tensor;

/** Element types, with the codes the C ABI knows them by. */
public enum DType {
    F32(1, 4), BF16(2, 2),
    /** Read from checkpoints and widened; never computed in. */
    F16(3, 2), I32(4, 4), U8(5, 1), U64(6, 8);

    private final int code;
    private final int byteSize;

    DType(int code, int byteSize) {
        this.code = code;
        this.byteSize = byteSize;
    }

    /** The {@code PNB_DTYPE_*} constant. */
    public int code() {
        return code;
    }

    /** Bytes of one element. */
    public int byteSize() {
        return byteSize;
    }

    public boolean isFloat() {
        return this == F32 || this == BF16 || this == F16;
    }
}
