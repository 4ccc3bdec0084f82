package dev.penumbra.model;

import dev.penumbra.backend.op.Embedding;
import dev.penumbra.tensor.Tensor;
import java.util.EnumSet;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** What a pass begins with: tokens, projected where their table has another width, and positions. */
final class OptEmbedding {

    private final OptWeights weights;
    private final Buffers buffers;
    private final LoadedBatch batch;
    private final PassOps ops;
    private final @Nullable Tensor embedded;

    OptEmbedding(Opt model, Buffers buffers, LoadedBatch batch, PassOps ops) {
        this.weights = model.weights();
        this.buffers = buffers;
        this.batch = batch;
        this.ops = ops;
        embedded = model.config().hasProjection()
                ? buffers.passing(EnumSet.of(Stage.EMBEDDING), model.dtype(), batch.capacity(),
                        model.config().wordEmbedProjDim())
                : null;
    }

    /** x [rows, hidden] = the batch's tokens and positions. */
    void forward(Tensor x) {
        if (embedded == null) {
            buffers.run(new Embedding(batch.ids(), weights.tokens, batch.positions(), weights.positions, Opt.POSITION_OFFSET,
                    null, x));
            return;
        }
        Tensor tokens = batch.of(embedded);
        buffers.run(new Embedding(batch.ids(), weights.tokens, null, null, 0, null, tokens));
        ops.linear(tokens, weights.projectIn, List.of(), null, x);
        buffers.run(new Embedding(null, null, batch.positions(), weights.positions, Opt.POSITION_OFFSET, x, x));
    }
}
