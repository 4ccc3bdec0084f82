package dev.penumbra.jmh;

import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import java.util.stream.IntStream;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** What chooses one layer's blocks of attention: true masses from sampled queries, a prediction, and the lists. */
public class AttentionChoiceBenchmark extends DeviceState {

    /** Rank of the predictors, and the rows that LayerNorm pools for them. */
    private static final int PREDICTOR_RANK = 16;
    private static final int POOL_ROWS = 32;
    private static final float COVERAGE = 0.95f;
    private static final float BUDGET = 0.3f;

    @Param("128")
    public int blockSize;
    /** Every so-manieth query is looked at for the masses. */
    @Param("8")
    public int queryStride;
    @Param("BF16")
    public DType dtype;

    private Tensor borders() {
        return of(IntStream.rangeClosed(0, batch).map(i -> i * seqLen).toArray());
    }

    private long slots() {
        return AttentionBlocks.slots(tokens(), batch, blockSize);
    }

    private int width() {
        return Math.ceilDiv(seqLen, blockSize);
    }

    /** One product over the pairs of a sampled query and a key before it. */
    @Benchmark
    public void attentionMass() {
        measure(() -> {
            Tensor borders = borders();
            float scale = (float) (1 / Math.sqrt(shape.headDim()));
            Tensor q = uniform(1, dtype, tokens(), shape.heads, shape.headDim());
            Tensor k = uniform(1, dtype, tokens(), shape.heads, shape.headDim());
            Tensor lse = zeros(DType.F32, shape.heads, tokens());
            runOnce(new AttentionForward(scale, q, k, k, zeros(dtype, tokens(), shape.heads, shape.headDim()), lse, borders,
                    borders, seqLen, null));
            AttentionMass mass = new AttentionMass(scale, q, k, lse, borders, seqLen, blockSize, queryStride,
                    zeros(DType.F32, shape.heads, slots(), width()));
            return new Work(mass, shape.attentionForwardFlops(batch, seqLen) / 2 / queryStride, 0);
        });
    }

    private PredictAttention prediction() {
        int h = shape.hiddenSize;
        Tensor pooled = uniform(1, DType.F32, Math.ceilDiv(tokens(), POOL_ROWS), h);
        Tensor a = uniform(1 / Math.sqrt(h), DType.BF16, 2, shape.heads, PREDICTOR_RANK, h);
        Tensor bias = uniform(1, DType.F32, 2, shape.heads, PREDICTOR_RANK);
        Tensor distance = uniform(1, DType.F32, shape.heads, width());
        Tensor borders = borders();
        Tensor predicted = zeros(DType.F32, shape.heads, slots(), width());
        return withWorkspace(space -> new PredictAttention(pooled, POOL_ROWS, a, bias, distance, borders, tokens(), seqLen,
                blockSize, predicted, space));
    }

    @Benchmark
    public void predictAttention() {
        measure(() -> new Work(prediction()));
    }

    @Benchmark
    public void selectAttention() {
        measure(() -> {
            PredictAttention prediction = prediction();
            runOnce(prediction); // the masses
            AttentionBlocks lists = new AttentionBlocks(zeros(DType.I32, shape.heads, slots(), width()),
                    zeros(DType.I32, shape.heads, slots()), zeros(DType.I32, shape.heads, slots(), width()),
                    zeros(DType.I32, shape.heads, slots()), zeros(DType.I32, 2, shape.heads * slots()), blockSize);
            float[] parts = new float[shape.heads];
            Arrays.fill(parts, BUDGET);
            Tensor budgets = of(parts);
            Tensor summary = zeros(DType.F32, SelectBlocks.SUMMARY_SIZE);
            SelectAttention select = withWorkspace(space -> new SelectAttention(prediction.mass(), null, budgets, COVERAGE,
                    prediction.cuSeqlens(), tokens(), seqLen, lists, summary, space));
            return new Work(select, 0, bytes(prediction.mass()));
        });
    }
}
