package dev.penumbra.jmh;

import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** LayerNorm; backward with the residual's gradient, as within a layer. */
public class LayerNormBenchmark extends DeviceState {

    @Param({"BF16", "F32"})
    public DType dtype;

    private LayerNormForward forward;
    private LayerNormBackward backward;
    private long forwardBytes;
    private long backwardBytes;

    @Override
    void prepare() {
        long h = shape.hiddenSize;
        Tensor x = uniform(1, dtype, tokens(), h);
        Tensor y = zeros(dtype, tokens(), h);
        Tensor dy = uniform(1, dtype, tokens(), h);
        Tensor residual = uniform(1, dtype, tokens(), h);
        Tensor dx = zeros(dtype, tokens(), h);
        Tensor mean = zeros(DType.F32, tokens());
        Tensor rstd = zeros(DType.F32, tokens());
        Tensor gamma = uniform(1, DType.F32, h);
        Tensor beta = uniform(1, DType.F32, h);
        forward = new LayerNormForward(x, gamma, beta, 1e-5f, y, mean, rstd);
        backward = new LayerNormBackward(dy, x, mean, rstd, gamma, residual, dx);
        long statistics = mean.byteSize() + rstd.byteSize();
        forwardBytes = x.byteSize() + y.byteSize() + statistics;
        backwardBytes = dy.byteSize() + x.byteSize() + residual.byteSize() + dx.byteSize() + statistics;
        runOnce(forward);
    }

    @Benchmark
    public void forward() {
        measure(forward, 0, forwardBytes);
    }

    @Benchmark
    public void backward() {
        measure(backward, 0, backwardBytes);
    }
}
