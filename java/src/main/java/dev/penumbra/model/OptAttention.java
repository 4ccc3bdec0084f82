package dev.penumbra.model;

import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.LayerNormForward.Pooling;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/** The attention of a pass, from its queries, keys and values on: dense, or over the listed blocks of keys. */
final class OptAttention {

    private final OptConfig config;
    private final Buffers buffers;
    private final LoadedBatch batch;
    private final @Nullable AttentionSelection selection;
    private final @Nullable AttentionObserver observer;
    private final @Nullable Tensor observed;

    OptAttention(OptConfig config, Buffers buffers, LoadedBatch batch, @Nullable AttentionSelection selection,
            @Nullable AttentionObserver observer) {
        this.config = config;
        this.buffers = buffers;
        this.batch = batch;
        this.selection = selection;
        this.observer = observer;
        observed = observer == null || observer.poolRows() == 0
                ? null
                : buffers.activations("pooled for attention's observer", DType.F32,
                        Math.ceilDiv(batch.capacity(), observer.poolRows()), config.hiddenSize());
    }

    private boolean isSparse(int layer, Run run) {
        return run == Run.SPARSE && selection != null && selection.isActive() && selection.isSparse(layer);
    }

    /** What the norm before a layer's queries and keys is to pool; null: nothing. */
    @Nullable
    Pooling pooling(int layer, Run run) {
        if (run == Run.SPARSE) {
            return selection == null ? null : selection.pooling(layer);
        }
        return observed == null || run == Run.SENSING
                ? null
                : new Pooling(observedRows(), observer.poolRows(), batch.validRows());
    }

    private Tensor observedRows() {
        return observed.slice(0, 0, Math.ceilDiv(batch.rows(), observer.poolRows()));
    }

    /** b.attention and b.lse = attention over b.qkv. */
    void forward(int i, LayerBuffers b, Run run) {
        boolean sparse = isSparse(i, run);
        boolean exact = !sparse || selection.isBackwardOnly() || selection.readsScores();
        if (exact) {
            forward(b, null);
        }
        if (sparse) {
            if (selection.isBackwardOnly()) {
                // What its norm has pooled is another layer's soon; the rest is chosen by when it is used.
                if (selection.isPredicted()) {
                    selection.chooseBefore(i);
                }
                return;
            }
            if (selection.readsScores()) {
                selection.chooseByScores(i, part(b.qkv, 0), part(b.qkv, 1), lse(b));
            } else {
                selection.chooseBefore(i);
            }
            forward(b, selection.blocks(i));
        }
        if (run == Run.SENSING && selection != null) {
            selection.sense(i, part(b.qkv, 0), part(b.qkv, 1), lse(b));
        }
        if (run == Run.DENSE && observer != null && !buffers.isPlanning()) {
            boolean normed = config.doLayerNormBefore() || i > 0;
            observer.afterAttention(i, new AttentionObserver.Seen(observed == null || !normed ? null : observedRows(),
                    part(b.qkv, 0), part(b.qkv, 1), part(b.qkv, 2), lse(b), batch.borders(), batch.maxSeqlen(),
                    batch.validRows()));
        }
    }

    private void forward(LayerBuffers b, @Nullable AttentionBlocks blocks) {
        buffers.run(new AttentionForward(config.attentionScale(), part(b.qkv, 0), part(b.qkv, 1), part(b.qkv, 2),
                output(b), lse(b), batch.borders(), batch.borders(), batch.maxSeqlen(), blocks));
    }

    /**
     * dQkv = the gradient of b.qkv, from that of b.attention; its keys' part only where that is needed. Where blocks are skipped
     * here alone it is that of attention over the other blocks, whose probabilities sum to one; b.attention and b.lse are that
     * attention's then. The exact ones would leave each query a gradient that points along its keys' mean, which is not small where
     * the skipped mass is.
     */
    void backward(int i, LayerBuffers b, Tensor dAttention, Tensor dQkv, boolean needsDk, Run run) {
        AttentionBlocks blocks = null;
        if (isSparse(i, run)) {
            if (selection.isBackwardOnly() && selection.readsScores()) {
                selection.chooseByScores(i, part(b.qkv, 0), part(b.qkv, 1), lse(b));
            } else if (selection.isBackwardOnly() && !selection.isPredicted()) {
                selection.chooseBefore(i);
            }
            blocks = selection.blocks(i);
            if (selection.isBackwardOnly()) {
                forward(b, blocks);
            }
        }
        buffers.run(new AttentionBackward(config.attentionScale(), part(b.qkv, 0), part(b.qkv, 1), part(b.qkv, 2),
                output(b), lse(b), heads(dAttention), part(dQkv, 0), needsDk ? part(dQkv, 1) : null, part(dQkv, 2),
                batch.borders(), batch.maxSeqlen(), blocks, buffers.workspace()));
    }

    private Tensor output(LayerBuffers b) {
        return heads(batch.of(b.attention));
    }

    private Tensor heads(Tensor matrix) {
        return matrix.splitLast(config.headDim());
    }

    /** q, k or v: [m, heads, headDim] of a [m, 3 h] buffer. */
    private Tensor part(Tensor qkv, int index) {
        long h = config.hiddenSize();
        return heads(batch.of(qkv).slice(1, index * h, (index + 1) * h));
    }

    private Tensor lse(LayerBuffers b) {
        int m = batch.rows();
        return b.lse.slice(0, 0, (long) config.numAttentionHeads() * m).reshape(config.numAttentionHeads(), m);
    }
}
