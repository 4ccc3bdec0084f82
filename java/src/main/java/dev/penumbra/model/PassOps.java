package dev.penumbra.model;

import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNorm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.tensor.Tensor;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/** The operations that a pass repeats, with a model's weights. Matrices are [rows, width]; buffers have these rows and more. */
final class PassOps {

    private final Buffers buffers;

    PassOps(Buffers buffers) {
        this.buffers = buffers;
    }

    /** The rows of a buffer that a matrix has. */
    private static Tensor like(Tensor matrix, Tensor buffer) {
        return buffer.slice(0, 0, matrix.shape().dim(0));
    }

    /** d = the given rows of {@code all}. */
    void gather(RowSet rows, Tensor all, Tensor d) {
        buffers.run(new Embedding(Objects.requireNonNull(rows.sources()), all, null, null, 0, null, d));
    }

    /** d, of all rows, = the gradient of given ones, and 0 elsewhere. */
    void spread(RowSet rows, Tensor gradient, Tensor d) {
        buffers.run(new Embedding(Objects.requireNonNull(rows.places()), gradient, null, null, 0, null, d));
    }

    /**
     * out = norm(in).
     *
     * @param mean a buffer, f32: {@code =}; likewise rstd
     * @param pooling what else is computed of it on the way; null: nothing
     * @param project adapters of it; null: none
     */
    void norm(Tensor in, OptWeights.LayerNorm norm, Tensor out, Tensor mean, Tensor rstd, @Nullable Pooling pooling,
            @Nullable LoraProject project) {
        buffers.run(new LayerNormForward(in, norm.gamma(), norm.beta(), Opt.EPSILON, out, like(in, mean), like(in, rstd),
                pooling, project));
    }

    /** dx = the gradient of a norm's input + residual; {@code in}, {@code mean} and {@code rstd} are buffers. */
    void normBackward(Tensor dy, Tensor in, Tensor mean, Tensor rstd, OptWeights.LayerNorm norm, @Nullable Tensor residual,
            Tensor dx) {
        buffers.run(new LayerNormBackward(dy, like(dy, in), like(dy, mean), like(dy, rstd), norm.gamma(), residual, dx));
    }

    /** The output of a norm over {@code in}, which is not kept; {@code mean} and {@code rstd} are buffers. */
    AdapterInput normed(Tensor in, OptWeights.LayerNorm norm, Tensor mean, Tensor rstd) {
        return new AdapterInput(in, new LayerNorm(like(in, mean), like(in, rstd), norm.gamma(), norm.beta()));
    }

    /** {@code in} in the dtype of {@code buffer}: rounded there, or itself where that is null. */
    Tensor rounded(Tensor in, @Nullable Tensor buffer) {
        if (buffer == null) {
            return in;
        }
        Tensor out = like(in, buffer);
        buffers.run(new Convert(in, out));
        return out;
    }

    /** d = x Wᵀ + bias + adapters' terms + residual. */
    void linear(Tensor in, OptWeights.Linear w, List<LowRank> terms, @Nullable Tensor residual, Tensor d) {
        buffers.run(Gemm.forward(in, w.weight(), d).lowRank(terms).bias(w.bias()).residual(residual)
                .workspace(buffers.workspace()).build());
    }

    /** dx = dy W + adapters' terms + residual. */
    void linearBackward(Tensor dy, OptWeights.Linear w, List<LowRank> terms, @Nullable Tensor residual, Tensor dx) {
        buffers.run(
                Gemm.backward(dy, w.weight(), dx).lowRank(terms).residual(residual).workspace(buffers.workspace()).build());
    }
}
