package dev.penumbra.backend.op;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;

/**
 * Which blocks of a weight's neurons a batch computes, on the device: kernels read it, the host does not have to.
 *
 * <p>A matrix over the listed neurons is compact: column {@code c · size + j} holds neuron {@code indices[l, c] · size + j}.
 *
 * @param indices i32 [lists, capacity]: each list's blocks, ascending, each once; what follows {@code counts[l]} is not read
 * @param counts i32 [lists]
 * @param size neighbouring neurons of a block: 32, 64 or 128
 * @param rowsPerList so many rows of the batch share a list; a multiple of 128, or at least all rows
 */
public record BlockList(Tensor indices, Tensor counts, int size, long rowsPerList) {

    public BlockList {
        if (indices.dtype() != DType.I32 || indices.shape().rank() != 2 || counts.dtype() != DType.I32
                || counts.shape().size() != indices.shape().dim(0)) {
            throw new IllegalArgumentException(
                    "expected indices i32 [lists, capacity] and counts i32 [lists], found " + indices + " and " + counts);
        }
        if (size != 32 && size != 64 && size != 128) {
            throw new IllegalArgumentException("expected blocks of 32, 64 or 128 neurons, found " + size);
        }
        if (rowsPerList <= 0) {
            throw new IllegalArgumentException("expected rows of a list above 0, found " + rowsPerList);
        }
    }

    public long lists() {
        return indices.shape().dim(0);
    }

    /** Blocks that a list has room for. */
    public long capacity() {
        return indices.shape().dim(1);
    }

    /** Columns of a compact matrix. */
    public long width() {
        return capacity() * size;
    }
}
