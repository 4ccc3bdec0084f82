package dev.penumbra.jmh;

import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** One adapter's streaming passes, on q_proj: they read activations, and do little arithmetic on them. */
public class LoraBenchmark extends DeviceState {

    @Param({"BF16", "F32"})
    public DType dtype;

    private LoraProject project;
    private LoraGradients gradients;
    private long projectBytes;
    private long gradientsBytes;

    @Override
    void prepare() {
        long size = shape.hiddenSize;
        Tensor x = uniform(1, dtype, tokens(), size);
        // q's columns of the gradient of q, k and v.
        Tensor dy = uniform(1, dtype, tokens(), 3 * size).slice(1, 0, size);
        Tensor a = uniform(1 / Math.sqrt(size), DType.F32, RANK, size);
        Tensor b = uniform(1, DType.F32, size, RANK);
        Tensor h = zeros(DType.F32, tokens(), RANK);
        Tensor dh = zeros(DType.F32, tokens(), RANK);
        Tensor da = zeros(DType.F32, RANK, size);
        Tensor db = zeros(DType.F32, size, RANK);
        project = new LoraProject(x, a, null, h);
        gradients = gradients(dy, x, h, a, b, dh, da, db,
                workspace(gradients(dy, x, h, a, b, dh, da, db, null)));
        projectBytes = x.byteSize() + a.byteSize() + h.byteSize();
        gradientsBytes = dy.byteSize() + x.byteSize() + h.byteSize() + b.byteSize() + dh.byteSize() + 2 * da.byteSize()
                + 2 * db.byteSize();
        runOnce(project);
    }

    private static LoraGradients gradients(Tensor dy, Tensor x, Tensor h, Tensor a, Tensor b, Tensor dh, Tensor da,
            Tensor db, @Nullable Tensor workspace) {
        return new LoraGradients(8, dy, x, h, a, b, null, dh, da, db, workspace);
    }

    @Benchmark
    public void project() {
        measure(project, project.flops(), projectBytes);
    }

    @Benchmark
    public void gradients() {
        measure(gradients, gradients.flops(), gradientsBytes);
    }
}
