package dev.penumbra.model;

import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.EnumSet;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** What a pass ends with: the final norm, the projection to the width of the head, and the head. OPT has any of the first two. */
final class OptHead {

    private final OptWeights weights;
    private final Buffers buffers;
    private final LoadedBatch batch;
    private final PassOps ops;
    private final Tensor last;
    private final Tensor mean;
    private final Tensor rstd;
    private final Tensor hidden;
    private final @Nullable Tensor projected;
    private final @Nullable Tensor dProjected;

    /** @param last the buffer of the last layer's output */
    OptHead(Opt model, Buffers buffers, LoadedBatch batch, PassOps ops, Tensor last, boolean training) {
        OptConfig config = model.config();
        int capacity = batch.capacity();
        this.weights = model.weights();
        this.buffers = buffers;
        this.batch = batch;
        this.ops = ops;
        this.last = last;
        mean = buffers.activations("final mean", DType.F32, capacity);
        rstd = buffers.activations("final rstd", DType.F32, capacity);
        hidden = weights.finalNorm == null && last.dtype() == model.dtype()
                ? last
                : buffers.passing(EnumSet.of(Stage.HEAD), model.dtype(), capacity, config.hiddenSize());
        projected = config.hasProjection()
                ? buffers.passing(EnumSet.of(Stage.HEAD), model.dtype(), capacity, config.wordEmbedProjDim())
                : null;
        dProjected = training && config.hasProjection()
                ? buffers.passing(EnumSet.of(Stage.HEAD), model.dtype(), capacity, config.wordEmbedProjDim())
                : null;
    }

    /** Computes the head's input, of the rows that are judged. */
    void forward() {
        RowSet rows = batch.judged();
        if (weights.finalNorm != null) {
            ops.norm(rows.of(last), weights.finalNorm, rows.of(hidden), mean, rstd, null, null);
        } else if (hidden != last) {
            ops.rounded(rows.of(last), hidden);
        }
        if (projected != null) {
            ops.linear(rows.of(hidden), weights.projectOut, List.of(), null, rows.of(projected));
        }
    }

    private Tensor input() {
        return batch.judged().of(projected == null ? hidden : projected);
    }

    /** loss[0] += the sum of −log p(target) over the supervised rows. */
    void addLoss(Tensor loss) {
        buffers.run(new LinearCrossEntropy(input(), weights.head, batch.supervisedRows(), batch.targets(), null, loss,
                null, buffers.workspace()));
    }

    /** Loss as {@link #addLoss}, and dx = gradScale[0] · its gradient by the last layer's output. */
    void addLossAndGradient(Tensor loss, Tensor gradScale, Tensor dx) {
        Tensor dInput = dProjected == null ? dx : batch.judged().of(dProjected);
        buffers.run(new LinearCrossEntropy(input(), weights.head, batch.supervisedRows(), batch.targets(), gradScale,
                loss, dInput, buffers.workspace()));
        if (dProjected != null) {
            ops.linearBackward(dInput, weights.projectOut, List.of(), null, dx);
        }
        if (weights.finalNorm != null) {
            ops.normBackward(dx, last, mean, rstd, weights.finalNorm, null, dx);
        }
    }

    /** logits[tokens, vocab], f32, of the batch's first rows: {@code =}. */
    void logits(Tensor logits) {
        Tensor rows = input().slice(0, 0, logits.shape().dim(0));
        buffers.run(Gemm.forward(rows, weights.head, logits).workspace(buffers.workspace()).build());
    }
}
