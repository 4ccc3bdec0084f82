package dev.penumbra.jmh;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/**
 * The four products of an MLP over a part of its blocks of neurons, each with the epilogue it has in a step. GFLOP/s count the
 * work of the dense products, so that they compare across kept fractions.
 */
public class MlpBenchmark extends DeviceState {

    /** 1: the dense products, without a list. */
    @Param({"1", "0.5", "0.25"})
    public double kept;
    @Param({"32", "64", "128"})
    public int blockSize;
    /** 0: all tokens share a list. */
    @Param("0")
    public int rowsPerList;
    @Param("BF16")
    public DType dtype;

    private Gemm fc1;
    private Gemm fc2;
    private Gemm hiddenGradient;
    private Gemm inputGradient;

    @Override
    void prepare() {
        int h = shape.hiddenSize;
        int ffn = shape.ffnDim;
        BlockList blocks = kept == 1
                ? null
                : blocks(ffn / blockSize, kept, blockSize, rowsPerList == 0 ? tokens() : rowsPerList);
        long width = blocks == null ? ffn : blocks.width();
        FrozenWeight w1 = weight(dtype, ffn, h);
        FrozenWeight w2 = weight(dtype, ffn, h); // fc2's, transposed: its rows are neurons too
        Tensor x = uniform(1, dtype, tokens(), h);
        Tensor hidden = zeros(dtype, tokens(), width);
        Tensor mask = zeros(DType.U8, tokens(), Math.ceilDiv(ffn, 8));
        Tensor dy = uniform(1, dtype, tokens(), h);
        Tensor dHidden = zeros(dtype, tokens(), width);
        fc1 = withWorkspace(Gemm.forward(x, w1, hidden).bias(uniform(1, DType.F32, ffn)).relu(mask), blocks);
        fc2 = withWorkspace(
                Gemm.backward(hidden, w2, zeros(dtype, tokens(), h)).bias(uniform(1, DType.F32, h)).residual(x), blocks);
        hiddenGradient = withWorkspace(Gemm.forward(dy, w2, dHidden).drelu(mask), blocks);
        inputGradient = withWorkspace(Gemm.backward(dHidden, w1, zeros(dtype, tokens(), h)), blocks);
        for (Operation operation : List.of(fc1, fc2, hiddenGradient, inputGradient)) {
            runOnce(operation);
        }
    }

    private Gemm withWorkspace(Gemm.Builder gemm, @Nullable BlockList blocks) {
        return gemm.blocks(blocks).workspace(workspace(gemm.build())).build();
    }

    private long denseFlops() {
        return 2L * tokens() * shape.hiddenSize * shape.ffnDim;
    }

    @Benchmark
    public void fc1() {
        measure(fc1, denseFlops(), 0);
    }

    @Benchmark
    public void fc2() {
        measure(fc2, denseFlops(), 0);
    }

    @Benchmark
    public void hiddenGradient() {
        measure(hiddenGradient, denseFlops(), 0);
    }

    @Benchmark
    public void inputGradient() {
        measure(inputGradient, denseFlops(), 0);
    }

    @Benchmark
    public void together() {
        measure(List.of(fc1, fc2, hiddenGradient, inputGradient), 4 * denseFlops(), 0);
    }
}
