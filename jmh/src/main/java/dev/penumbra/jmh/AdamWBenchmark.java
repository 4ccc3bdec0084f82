package dev.penumbra.jmh;

import dev.penumbra.backend.op.AdamW;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import org.openjdk.jmh.annotations.Benchmark;

/** One update of all adapters on q_proj and v_proj, with clipping. */
public class AdamWBenchmark extends DeviceState {

    private static final float BETA1 = 0.9f;
    private static final float BETA2 = 0.999f;

    @Benchmark
    public void update() {
        measure(() -> {
            long n = 2L * shape.layers * 2 * RANK * shape.hiddenSize;
            Tensor param = uniform(1, DType.F32, n);
            Tensor grad = uniform(1e-3, DType.F32, n);
            Tensor m = zeros(DType.F32, n);
            Tensor v = zeros(DType.F32, n);
            Tensor schedule = of(1e-4f, 1 - BETA1, 1 - BETA2);
            Tensor norm = zeros(DType.F32, 1);
            AdamW update = withWorkspace(
                    space -> new AdamW(param, grad, m, v, BETA1, BETA2, 1e-8f, 0, 1, schedule, norm, space));
            // grad is read for its norm and for the update; the others are read and written.
            return new Work(update, 0, 8 * param.byteSize());
        });
    }
}
