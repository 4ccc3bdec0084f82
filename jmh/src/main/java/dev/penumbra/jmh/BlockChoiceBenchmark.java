package dev.penumbra.jmh;

import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.PredictMass;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** What chooses one layer's blocks: masses from the activation and from its ReLU bits, a prediction, and the lists. */
public class BlockChoiceBenchmark extends DeviceState {

    /** Rank of the predictors, and the rows that LayerNorm pools for them. */
    private static final int PREDICTOR_RANK = 64;
    private static final int POOL_ROWS = 32;
    private static final float COVERAGE = 0.9f;

    @Param({"32", "128"})
    public int blockSize;
    /** 0: all tokens share a list. */
    @Param("0")
    public int rowsPerList;
    @Param("BF16")
    public DType dtype;

    private LayerNormForward pooled;
    private ActivationMass mass;
    private ActivationMass massOfBits;
    private PredictMass predict;
    private SelectBlocks select;

    @Override
    void prepare() {
        int ffn = shape.ffnDim;
        int h = shape.hiddenSize;
        int blocks = ffn / blockSize;
        // A group of pooled rows belongs to one list.
        int rows = Math.ceilDiv(rowsPerList == 0 ? tokens() : rowsPerList, POOL_ROWS) * POOL_ROWS;
        int lists = Math.ceilDiv(tokens(), rows);
        Tensor x = uniform(1, dtype, tokens(), ffn);
        Tensor bits = zeros(DType.U8, tokens(), ffn / 8);
        Tensor norms = uniform(1, DType.F32, ffn);
        Tensor scores = uniform(1, DType.F32, lists, blocks);
        Tensor means = uniform(1, DType.F32, Math.ceilDiv(tokens(), POOL_ROWS), h);
        pooled = new LayerNormForward(uniform(1, dtype, tokens(), h), uniform(1, DType.F32, h), uniform(1, DType.F32, h),
                1e-5f, zeros(dtype, tokens(), h), zeros(DType.F32, tokens()), zeros(DType.F32, tokens()),
                new LayerNormForward.Pooling(means, POOL_ROWS, null), null);
        Tensor ofValues = zeros(DType.F32, lists, blocks);
        Function<@Nullable Tensor, ActivationMass> values = space -> new ActivationMass(x, null, norms, null, blockSize,
                rows,
                ofValues, null, null, space);
        mass = values.apply(workspace(values.apply(null)));
        Tensor ofBits = zeros(DType.F32, lists, blocks);
        Function<@Nullable Tensor, ActivationMass> masks = space -> new ActivationMass(null, bits, norms, null, blockSize,
                rows,
                ofBits, null, null, space);
        massOfBits = masks.apply(workspace(masks.apply(null)));
        Tensor a = uniform(1, DType.F32, PREDICTOR_RANK, h);
        Tensor b = uniform(1, DType.F32, blocks, PREDICTOR_RANK);
        Tensor bias = uniform(1, DType.F32, blocks);
        Tensor predicted = zeros(DType.F32, lists, blocks);
        Function<@Nullable Tensor, PredictMass> prediction = space -> new PredictMass(means, a, b, bias, null, 1,
                rows / POOL_ROWS, predicted, space);
        predict = prediction.apply(workspace(prediction.apply(null)));
        select = new SelectBlocks(scores, COVERAGE,
                new BlockList(zeros(DType.I32, lists, blocks), zeros(DType.I32, lists), blockSize, rows),
                zeros(DType.F32, SelectBlocks.SUMMARY_SIZE));
    }

    @Benchmark
    public void pooledLayerNorm() {
        measure(pooled, 0, pooled.x().byteSize() + pooled.y().byteSize());
    }

    @Benchmark
    public void activationMass() {
        measure(mass, 0, mass.x().byteSize());
    }

    @Benchmark
    public void activationMassOfBits() {
        measure(massOfBits, 0, massOfBits.reluMask().byteSize());
    }

    @Benchmark
    public void predictMass() {
        measure(predict, predict.flops(), 0);
    }

    @Benchmark
    public void selectBlocks() {
        measure(select, 0, select.scores().byteSize());
    }
}
