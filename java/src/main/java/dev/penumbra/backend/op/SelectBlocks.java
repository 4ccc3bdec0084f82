package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Chooses each list's blocks by falling score until their sum reaches {@code coverage} times the sum of all, at most as many
 * as fit. Scores of 0 or less are never chosen.
 *
 * @param scores f32 [lists, blocks]
 * @param blocks its indices and counts: {@code =}, ascending
 * @param summary f32 [3]: {@code =} the part of the blocks that was chosen, their part of the scores' sum, and the part of the
 *     lists that wanted more than fit
 */
public record SelectBlocks(Tensor scores, float coverage, BlockList blocks, @Nullable Tensor summary)
        implements
            Operation {

    public static final int SUMMARY_SIZE = 3;
}
