package dev.penumbra.jmh;

import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.PredictMass;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
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

    /** Rows of a list: a group of pooled rows belongs to one. */
    private int rows() {
        return Math.ceilDiv(rowsPerList == 0 ? tokens() : rowsPerList, POOL_ROWS) * POOL_ROWS;
    }

    private int lists() {
        return Math.ceilDiv(tokens(), rows());
    }

    private int blocks() {
        return shape.ffnDim / blockSize;
    }

    @Benchmark
    public void pooledLayerNorm() {
        measure(() -> {
            int h = shape.hiddenSize;
            LayerNormForward pooled = new LayerNormForward(uniform(1, dtype, tokens(), h), uniform(1, DType.F32, h),
                    uniform(1, DType.F32, h), 1e-5f, zeros(dtype, tokens(), h), zeros(DType.F32, tokens()),
                    zeros(DType.F32, tokens()),
                    new LayerNormForward.Pooling(zeros(DType.F32, Math.ceilDiv(tokens(), POOL_ROWS), h), POOL_ROWS, null),
                    null);
            return new Work(pooled, 0, bytes(pooled.x(), pooled.y()));
        });
    }

    private Work mass(@Nullable Tensor x, @Nullable Tensor mask) {
        Tensor norms = uniform(1, DType.F32, shape.ffnDim);
        Tensor ofBlocks = zeros(DType.F32, lists(), blocks());
        ActivationMass mass = withWorkspace(
                space -> new ActivationMass(x, mask, norms, null, blockSize, rows(), ofBlocks, null, null, space));
        return new Work(mass, 0, bytes(x == null ? mask : x));
    }

    @Benchmark
    public void activationMass() {
        measure(() -> mass(uniform(1, dtype, tokens(), shape.ffnDim), null));
    }

    @Benchmark
    public void activationMassOfBits() {
        measure(() -> mass(null, mask(tokens(), shape.ffnDim)));
    }

    @Benchmark
    public void predictMass() {
        measure(() -> {
            int h = shape.hiddenSize;
            Tensor means = uniform(1, DType.F32, Math.ceilDiv(tokens(), POOL_ROWS), h);
            Tensor a = uniform(1, DType.F32, PREDICTOR_RANK, h);
            Tensor b = uniform(1, DType.F32, blocks(), PREDICTOR_RANK);
            Tensor bias = uniform(1, DType.F32, blocks());
            Tensor scores = zeros(DType.F32, lists(), blocks());
            return new Work(withWorkspace(
                    space -> new PredictMass(means, a, b, bias, null, 1, rows() / POOL_ROWS, scores, space)));
        });
    }

    @Benchmark
    public void selectBlocks() {
        measure(() -> {
            Tensor scores = uniform(1, DType.F32, lists(), blocks());
            BlockList chosen = new BlockList(zeros(DType.I32, lists(), blocks()), zeros(DType.I32, lists()), blockSize,
                    rows());
            SelectBlocks select = new SelectBlocks(scores, COVERAGE, chosen, zeros(DType.F32, SelectBlocks.SUMMARY_SIZE));
            return new Work(select, 0, bytes(scores));
        });
    }
}
