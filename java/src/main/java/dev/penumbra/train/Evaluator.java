package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.OptionalDouble;
import java.util.function.BooleanSupplier;
import org.jspecify.annotations.Nullable;

/** Mean loss per supervised token over a data set, without dropout. */
public final class Evaluator {

    private Evaluator() {
    }

    /**
     * Loss in nats; the model's perplexity is its exponential. Rows are packed, {@code batchSize} x {@code seqLen} tokens at a
     * time.
     *
     * @throws IllegalArgumentException when rows are longer than the model's positions
     * @throws dev.penumbra.data.DataException when no token is supervised, or a sample is longer than {@code seqLen}
     */
    public static double loss(LanguageModel model, @Nullable LoraAdapter adapter, Dataset data, int batchSize, int seqLen) {
        model.requirePositions(seqLen);
        try (Arena arena = Arena.ofShared()) {
            PassShape shape = PassShape.ofRows(batchSize, seqLen, false);
            ModelPass pass = model.openPass(arena, adapter, shape, PassOptions.DENSE.forLoss());
            return loss(model.backend(), pass, model.backend().allocate(arena, DType.F32, Shape.of(1)),
                    new Batches(data, batchSize, seqLen, true, false, 0), () -> false).orElseThrow();
        }
    }

    /**
     * As above, in buffers that are there already.
     *
     * @param batches one epoch of them
     * @param ended asked before each batch; where it says so, there is no loss
     */
    static OptionalDouble loss(Backend backend, ModelPass pass, Tensor sum, Batches batches, BooleanSupplier ended) {
        double total = 0;
        long supervised = 0;
        int count = batches.batchesPerEpoch();
        for (int i = 0; i < count; i++) {
            if (ended.getAsBoolean()) {
                return OptionalDouble.empty();
            }
            Batch batch = batches.next();
            backend.run(new Fill(0, sum));
            pass.forward(batch, null);
            pass.addLoss(sum);
            total += Scalars.read(backend, sum);
            supervised += batch.rows().length;
        }
        return OptionalDouble.of(total / supervised);
    }
}
