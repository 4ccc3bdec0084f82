package dev.penumbra.backend.op;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;

/**
 * Which blocks of keys each block of queries attends to, head by head, on the device: kernels read it, the host does not have
 * to. A block is {@code size} neighbouring rows of one sample; block j of sample s has the slot
 * {@code cuSeqlens[s] / size + s + j}.
 *
 * @param indices i32 [heads, slots, width]: key blocks, ascending, each once, none after the query block itself
 * @param counts i32 [heads, slots]; 0 in slots of no block
 * @param transposedIndices i32 [heads, slots, width]: the query blocks that attend to a slot's key block, ascending
 * @param transposedCounts i32 [heads, slots]
 * @param order i32 [2, heads · slots]: {@code head · slots + slot} of all blocks by falling count, then -1; likewise by
 *     transposed count. On a GPU what makes lists may write it share by share instead (penumbra/attention_blocks.h)
 * @param size rows of a block: 64 or 128
 */
public record AttentionBlocks(Tensor indices, Tensor counts, Tensor transposedIndices, Tensor transposedCounts, Tensor order,
        int size) {

    public AttentionBlocks {
        if (indices.dtype() != DType.I32 || indices.shape().rank() != 3
                || !indices.shape().equals(transposedIndices.shape())) {
            throw new IllegalArgumentException("expected indices and transposed indices i32 [heads, slots, width], found "
                    + indices + " and " + transposedIndices);
        }
        long lists = indices.shape().dim(0) * indices.shape().dim(1);
        if (counts.shape().size() != lists || transposedCounts.shape().size() != lists
                || order.shape().size() != 2 * lists) {
            throw new IllegalArgumentException(
                    "expected " + lists + " counts, transposed counts and twice as many of order, found "
                            + counts + ", " + transposedCounts + " and " + order);
        }
        if (size != 64 && size != 128) {
            throw new IllegalArgumentException("expected blocks of 64 or 128 rows, found " + size);
        }
    }

    /** Slots of a batch. */
    public static long slots(long tokens, long samples, int size) {
        return tokens / size + samples;
    }

    public long heads() {
        return indices.shape().dim(0);
    }

    public long slots() {
        return indices.shape().dim(1);
    }

    /** Blocks that a list has room for. */
    public long width() {
        return indices.shape().dim(2);
    }
}
