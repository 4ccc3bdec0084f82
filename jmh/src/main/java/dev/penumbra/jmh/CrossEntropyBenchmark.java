package dev.penumbra.jmh;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** The language-model head fused with the cross-entropy, every token supervised. */
public class CrossEntropyBenchmark extends DeviceState {

    @Param({"BF16", "F32"})
    public DType dtype;

    private Work work(boolean withGradient) {
        FrozenWeight head = weight(dtype, shape.vocabSize, shape.hiddenSize);
        Tensor x = uniform(1, dtype, tokens(), shape.hiddenSize);
        Tensor rows = of(IntStream.range(0, tokens()).toArray());
        SplittableRandom random = new SplittableRandom(7);
        Tensor targets = of(IntStream.range(0, tokens()).map(i -> random.nextInt(shape.vocabSize)).toArray());
        Tensor gradScale = withGradient ? of(1f / tokens()) : null;
        Tensor sum = zeros(DType.F32, 1);
        Tensor dx = withGradient ? zeros(dtype, tokens(), shape.hiddenSize) : null;
        return new Work(
                withWorkspace(space -> new LinearCrossEntropy(x, head, rows, targets, gradScale, sum, dx, space)));
    }

    @Benchmark
    public void loss() {
        measure(() -> work(false));
    }

    @Benchmark
    public void lossAndGradient() {
        measure(() -> work(true));
    }
}
