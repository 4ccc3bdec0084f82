package dev.penumbra.jmh;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** The language-model head fused with the cross-entropy, every token supervised. */
public class CrossEntropyBenchmark extends DeviceState {

    @Param({"BF16", "F32"})
    public DType dtype;

    private LinearCrossEntropy loss;
    private LinearCrossEntropy lossAndGradient;

    @Override
    void prepare() {
        FrozenWeight head = weight(dtype, shape.vocabSize, shape.hiddenSize);
        Tensor x = uniform(1, dtype, tokens(), shape.hiddenSize);
        Tensor rows = of(IntStream.range(0, tokens()).toArray());
        SplittableRandom random = new SplittableRandom(7);
        Tensor targets = of(IntStream.range(0, tokens()).map(i -> random.nextInt(shape.vocabSize)).toArray());
        Tensor gradScale = of(1f / tokens());
        Tensor sum = zeros(DType.F32, 1);
        Tensor dx = zeros(dtype, tokens(), shape.hiddenSize);
        loss = withWorkspace(x, head, rows, targets, null, sum, null);
        lossAndGradient = withWorkspace(x, head, rows, targets, gradScale, sum, dx);
    }

    private LinearCrossEntropy withWorkspace(Tensor x, FrozenWeight head, Tensor rows, Tensor targets,
            @Nullable Tensor gradScale, Tensor sum, @Nullable Tensor dx) {
        var planned = new LinearCrossEntropy(x, head, rows, targets, gradScale, sum, dx, null);
        return new LinearCrossEntropy(x, head, rows, targets, gradScale, sum, dx, workspace(planned));
    }

    @Benchmark
    public void loss() {
        measure(loss);
    }

    @Benchmark
    public void lossAndGradient() {
        measure(lossAndGradient);
    }
}
