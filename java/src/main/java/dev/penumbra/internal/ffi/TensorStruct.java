package dev.penumbra.internal.ffi;

import dev.penumbra.internal.ffi.penumbra.pnb_tensor;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/** Writes tensors as {@code pnb_tensor}. */
final class TensorStruct {

    private TensorStruct() {
    }

    /** Writes {@code tensor} into a zeroed struct; null leaves it zero, which says "absent". */
    static void write(MemorySegment struct, @Nullable Tensor tensor) {
        if (tensor == null) {
            return;
        }
        int rank = tensor.shape().rank();
        pnb_tensor.data(struct, MemorySegment.ofAddress(tensor.address()));
        pnb_tensor.dtype(struct, tensor.dtype().code());
        pnb_tensor.rank(struct, rank);
        for (int i = 0; i < rank; i++) {
            pnb_tensor.shape(struct, i, tensor.shape().dim(i));
            pnb_tensor.stride(struct, i, tensor.stride(i));
        }
    }
}
