package dev.penumbra.model;

import dev.penumbra.data.Batch;
import dev.penumbra.tensor.Tensor;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** Forward and backward over batches, in buffers allocated once. */
public interface ModelPass {

    /** Whether the blocks that a pass was opened to choose are all that it computes, or all are. */
    enum Mode {
        DENSE, SPARSE
    }

    /**
     * Uploads a batch. Dropout is drawn when {@code dropout} is not null and the adapter has some; random blocks are drawn
     * from it too.
     *
     * @throws IllegalArgumentException when the batch is empty or larger than the pass, or a sample longer
     * @throws IllegalStateException when blocks are to be chosen and the pass was opened without any to choose
     * @throws ModelException when the batch has tokens or positions that the model does not
     */
    void load(Batch batch, @Nullable DropoutSeed dropout, Mode mode);

    /** As {@link #load(Batch, DropoutSeed, Mode)}, dense. */
    default void load(Batch batch, @Nullable DropoutSeed dropout) {
        load(batch, dropout, Mode.DENSE);
    }

    /**
     * What the operations on the loaded batch depend on beside its contents: operations recorded for one batch serve every
     * other of an equal signature.
     */
    Object signature();

    /**
     * Runs the loaded batch up to the head's input.
     *
     * @throws IllegalStateException when none was loaded
     */
    void forward();

    /** Loads a batch and runs it up to the head's input. */
    default void forward(Batch batch, @Nullable DropoutSeed dropout) {
        load(batch, dropout);
        forward();
    }

    /**
     * loss[0] += the sum of −log p(target) over the batch's supervised tokens. Follows {@link #forward}.
     *
     * @throws IllegalStateException when no forward pass of the loaded batch went before, or its gradients were taken
     */
    void addLoss(Tensor loss);

    /**
     * Loss as {@link #addLoss}, and grad += gradScale · ∂(sum)/∂(adapter parameters). Once for each forward pass, whose
     * activations it writes over.
     *
     * @param gradScale f32 [1] on the device
     * @param grad f32, flat, laid out as the adapter's parameters
     * @throws IllegalStateException as {@link #addLoss}
     */
    void addLossAndGradients(Tensor loss, Tensor gradScale, Tensor grad);

    /**
     * logits[tokens, vocab], f32, of the batch's first rows: {@code =}. Follows {@link #forward}.
     *
     * @throws IllegalStateException as {@link #addLoss}, or when the pass was opened for its loss only
     */
    void logits(Tensor logits);

    /**
     * Which MLP neurons each token of the batch activates, layer by layer. Follows a dense {@link #forward}, and the next one
     * overwrites them.
     *
     * @throws IllegalStateException when the pass's shape does not keep masks, or it was opened for its loss only
     */
    List<ReluMask> reluMasks();

    /** What the lists of MLP blocks tell, and how they are made; null when the pass was opened without any. */
    @Nullable
    BlockChoice blockChoice();

    /** What the lists of attention blocks tell, and how they are made; null when the pass was opened without any. */
    @Nullable
    BlockChoice attentionChoice();

    /**
     * Runs the loaded batch's forward pass densely and keeps each layer's true masses, of which {@link BlockChoice#coverage}
     * tells. Follows {@link #load}; the batch is run as it was loaded after.
     *
     * @throws IllegalStateException when the pass was opened without measurements
     */
    void sense();

    /** Seed and offset of a micro-batch's dropout: equal ones draw equal masks. */
    record DropoutSeed(long seed, long offset) {
    }
}
