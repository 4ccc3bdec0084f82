package dev.penumbra.jmh;

import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** One adapter's streaming passes, on q_proj: they read activations, and do little arithmetic on them. */
public class LoraBenchmark extends DeviceState {

    @Param({"BF16", "F32"})
    public DType dtype;

    private LoraProject projection() {
        long size = shape.hiddenSize;
        return new LoraProject(uniform(1, dtype, tokens(), size), uniform(1 / Math.sqrt(size), DType.F32, RANK, size), null,
                zeros(DType.F32, tokens(), RANK));
    }

    @Benchmark
    public void project() {
        measure(() -> {
            LoraProject project = projection();
            return new Work(project, project.flops(), bytes(project.x(), project.a(), project.h()));
        });
    }

    @Benchmark
    public void gradients() {
        measure(() -> {
            LoraProject project = projection();
            runOnce(project); // h
            Tensor x = project.x();
            Tensor h = project.h();
            long size = shape.hiddenSize;
            // q's columns of the gradient of q, k and v.
            Tensor dy = uniform(1, dtype, tokens(), 3 * size).slice(1, 0, size);
            Tensor b = uniform(1, DType.F32, size, RANK);
            Tensor dh = zeros(DType.F32, tokens(), RANK);
            Tensor da = zeros(DType.F32, RANK, size);
            Tensor db = zeros(DType.F32, size, RANK);
            LoraGradients gradients = withWorkspace(
                    space -> new LoraGradients(8, dy, x, h, project.a(), b, null, dh, da, db, space));
            return new Work(gradients, gradients.flops(), bytes(dy, x, h, b, dh, da, da, db, db));
        });
    }
}
