package dev.penumbra.jmh;

import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.tensor.DType;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** LayerNorm; backward with the residual's gradient, as within a layer. */
public class LayerNormBenchmark extends DeviceState {

    @Param({"BF16", "F32"})
    public DType dtype;

    private LayerNormForward norm() {
        long h = shape.hiddenSize;
        return new LayerNormForward(uniform(1, dtype, tokens(), h), uniform(1, DType.F32, h), uniform(1, DType.F32, h),
                1e-5f,
                zeros(dtype, tokens(), h), zeros(DType.F32, tokens()), zeros(DType.F32, tokens()));
    }

    @Benchmark
    public void forward() {
        measure(() -> {
            LayerNormForward norm = norm();
            return new Work(norm, 0, bytes(norm.x(), norm.y(), norm.mean(), norm.rstd()));
        });
    }

    @Benchmark
    public void backward() {
        measure(() -> {
            LayerNormForward norm = norm();
            runOnce(norm); // mean and rstd
            long h = shape.hiddenSize;
            LayerNormBackward backward = new LayerNormBackward(uniform(1, dtype, tokens(), h), norm.x(), norm.mean(),
                    norm.rstd(), norm.gamma(), uniform(1, dtype, tokens(), h), zeros(dtype, tokens(), h));
            return new Work(backward, 0,
                    bytes(backward.dy(), norm.x(), backward.residual(), backward.dx(), norm.mean(), norm.rstd()));
        });
    }
}
