package dev.penumbra.jmh;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.List;
import java.util.function.Function;
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

    private record Products(Gemm fc1, Gemm fc2, Gemm hiddenGradient, Gemm inputGradient) {

        List<Gemm> all() {
            return List.of(fc1, fc2, hiddenGradient, inputGradient);
        }
    }

    private Products products() {
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
        Tensor mask = mask(tokens(), ffn);
        Tensor dy = uniform(1, dtype, tokens(), h);
        Tensor dHidden = zeros(dtype, tokens(), width);
        Products products = new Products(
                product(blocks, Gemm.forward(x, w1, hidden).bias(uniform(1, DType.F32, ffn)).relu(mask)),
                product(blocks,
                        Gemm.backward(hidden, w2, zeros(dtype, tokens(), h)).bias(uniform(1, DType.F32, h)).residual(x)),
                product(blocks, Gemm.forward(dy, w2, dHidden).drelu(mask)),
                product(blocks, Gemm.backward(dHidden, w1, zeros(dtype, tokens(), h))));
        products.all().forEach(this::runOnce); // each reads what those before it wrote
        return products;
    }

    private Gemm product(@Nullable BlockList blocks, Gemm.Builder gemm) {
        return withWorkspace(space -> gemm.blocks(blocks).workspace(space).build());
    }

    private void measureOne(Function<Products, Gemm> product) {
        measure(() -> new Work(product.apply(products()), denseFlops(), 0));
    }

    private long denseFlops() {
        return 2L * tokens() * shape.hiddenSize * shape.ffnDim;
    }

    @Benchmark
    public void fc1() {
        measureOne(Products::fc1);
    }

    @Benchmark
    public void fc2() {
        measureOne(Products::fc2);
    }

    @Benchmark
    public void hiddenGradient() {
        measureOne(Products::hiddenGradient);
    }

    @Benchmark
    public void inputGradient() {
        measureOne(Products::inputGradient);
    }

    @Benchmark
    public void together() {
        measure(() -> new Work(products().all(), 4 * denseFlops(), 0));
    }
}
