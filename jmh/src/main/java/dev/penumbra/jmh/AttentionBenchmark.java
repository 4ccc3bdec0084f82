package dev.penumbra.jmh;

import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.stream.IntStream;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/**
 * Causal attention over a packed row of {@code batch * seqLen} tokens. The row's length stays the same while its samples
 * shrink: the time follows the sum of their squared lengths, {@code tokens * sampleLength}, not the row's square.
 */
public class AttentionBenchmark extends DeviceState {

    @Param({"512", "256", "128", "64"})
    public int sampleLength;
    @Param({"BF16", "F32"})
    public DType dtype;

    private AttentionForward forward;
    private AttentionBackward backward;
    private int samples;

    @Override
    void prepare() {
        if (tokens() % sampleLength != 0) {
            throw new IllegalArgumentException(
                    "expected a sampleLength that divides " + tokens() + " tokens, found " + sampleLength);
        }
        samples = tokens() / sampleLength;
        Tensor borders = of(IntStream.rangeClosed(0, samples).map(i -> i * sampleLength).toArray());
        Tensor qkv = uniform(1, dtype, tokens(), 3L * shape.hiddenSize);
        Tensor dQkv = zeros(dtype, tokens(), 3L * shape.hiddenSize);
        Tensor o = zeros(dtype, tokens(), shape.heads, shape.headDim());
        Tensor dO = uniform(1, dtype, tokens(), shape.heads, shape.headDim());
        Tensor lse = zeros(DType.F32, shape.heads, tokens());
        float scale = (float) (1 / Math.sqrt(shape.headDim()));
        forward = new AttentionForward(scale, part(qkv, 0), part(qkv, 1), part(qkv, 2), o, lse, borders, borders,
                sampleLength, null);
        AttentionBackward planned = backward(scale, qkv, o, lse, dO, dQkv, borders, null);
        backward = backward(scale, qkv, o, lse, dO, dQkv, borders, workspace(planned));
        runOnce(forward);
    }

    private AttentionBackward backward(float scale, Tensor qkv, Tensor o, Tensor lse, Tensor dO, Tensor dQkv, Tensor borders,
            Tensor workspace) {
        return new AttentionBackward(scale, part(qkv, 0), part(qkv, 1), part(qkv, 2), o, lse, dO, part(dQkv, 0),
                part(dQkv, 1), part(dQkv, 2), borders, sampleLength, null, workspace);
    }

    /** q, k or v as [tokens, heads, headDim], out of one product's [tokens, 3 h]. */
    private Tensor part(Tensor qkv, int index) {
        long h = shape.hiddenSize;
        return qkv.slice(1, index * h, (index + 1) * h).splitLast(shape.headDim());
    }

    @Benchmark
    public void forward() {
        measure(forward, shape.attentionForwardFlops(samples, sampleLength), 0);
    }

    @Benchmark
    public void backward() {
        measure(backward, shape.attentionBackwardFlops(samples, sampleLength), 0);
    }
}
