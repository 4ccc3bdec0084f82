package dev.penumbra.jmh;

import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/**
 * Causal attention over a packed row of {@code batch * seqLen} tokens. The row's length stays the same while its samples
 * shrink: the time follows the sum of their squared lengths, {@code tokens * sampleLength}, not the row's square. By lists of
 * blocks it follows the blocks that are kept, and GFLOP/s count the pairs of a query and a key in those alone.
 */
public class AttentionBenchmark extends DeviceState {

    static final String DENSE = "dense";

    @Param({"512", "256", "128", "64"})
    public int sampleLength;
    @Param({"BF16", "F32"})
    public DType dtype;
    /** Part of the blocks on and below the diagonal that every head keeps, or "dense": no lists. */
    @Param(DENSE)
    public String kept;
    @Param("128")
    public int blockSize;

    /** Of the pairs of a query and a key before it, the part that the lists keep. */
    private double keptPairs = 1;

    private int samples() {
        return tokens() / sampleLength;
    }

    /** A pass that has run: backward reads its o and lse. */
    private AttentionForward pass() {
        if (tokens() % sampleLength != 0) {
            throw new IllegalArgumentException(
                    "expected a sampleLength that divides " + tokens() + " tokens, found " + sampleLength);
        }
        Tensor borders = of(IntStream.rangeClosed(0, samples()).map(i -> i * sampleLength).toArray());
        Tensor qkv = uniform(1, dtype, tokens(), 3L * shape.hiddenSize);
        AttentionForward forward = new AttentionForward((float) (1 / Math.sqrt(shape.headDim())), part(qkv, 0), part(qkv, 1),
                part(qkv, 2), zeros(dtype, tokens(), shape.heads, shape.headDim()), zeros(DType.F32, shape.heads, tokens()),
                borders, borders, sampleLength, kept.equals(DENSE) ? null : blocks(Float.parseFloat(kept), borders));
        runOnce(forward);
        return forward;
    }

    /** Lists by masses that differ from head to head and are the same for every sample. */
    private AttentionBlocks blocks(float budget, Tensor borders) {
        if (sampleLength % blockSize != 0) {
            throw new IllegalArgumentException(
                    "expected a sampleLength of whole blocks of " + blockSize + ", found " + sampleLength);
        }
        int width = sampleLength / blockSize;
        long slots = AttentionBlocks.slots(tokens(), samples(), blockSize);
        AttentionBlocks lists = new AttentionBlocks(zeros(DType.I32, shape.heads, slots, width),
                zeros(DType.I32, shape.heads, slots), zeros(DType.I32, shape.heads, slots, width),
                zeros(DType.I32, shape.heads, slots), zeros(DType.I32, 2, shape.heads * slots), blockSize);
        float[] masses = new float[shape.heads * width * width];
        Random random = new Random(42);
        IntStream.range(0, masses.length).forEach(i -> masses[i] = 1 - random.nextFloat()); // above 0
        float[] budgets = new float[shape.heads];
        Arrays.fill(budgets, budget);
        Tensor table = of(masses).reshape(shape.heads, width, width);
        Tensor parts = of(budgets);
        Tensor summary = zeros(DType.F32, SelectBlocks.SUMMARY_SIZE);
        runOnce(withWorkspace(space -> new SelectAttention(null, table, parts, 1, borders, tokens(), sampleLength, lists,
                summary, space)));
        double below = read(summary)[0] * width * (width + 1) / 2.0 - width; // blocks of a list that are seen whole
        keptPairs = (below * blockSize * blockSize + width * (blockSize * (blockSize + 1) / 2.0))
                / (sampleLength * (sampleLength + 1) / 2.0);
        return lists;
    }

    /** q, k or v as [tokens, heads, headDim], out of one product's [tokens, 3 h]. */
    private Tensor part(Tensor qkv, int index) {
        long h = shape.hiddenSize;
        return qkv.slice(1, index * h, (index + 1) * h).splitLast(shape.headDim());
    }

    private Work work(Operation operation, long denseFlops) {
        return new Work(operation, Math.round(keptPairs * denseFlops), 0);
    }

    @Benchmark
    public void forward() {
        measure(() -> work(pass(), shape.attentionForwardFlops(samples(), sampleLength)));
    }

    @Benchmark
    public void backward() {
        measure(() -> {
            AttentionForward pass = pass();
            Tensor dO = uniform(1, dtype, tokens(), shape.heads, shape.headDim());
            Tensor dQkv = zeros(dtype, tokens(), 3L * shape.hiddenSize);
            AttentionBackward backward = withWorkspace(space -> new AttentionBackward(pass.scale(), pass.q(), pass.k(),
                    pass.v(), pass.o(), pass.lse(), dO, part(dQkv, 0), part(dQkv, 1), part(dQkv, 2), pass.cuSeqlensQ(),
                    sampleLength, pass.blocks(), space));
            return work(backward, shape.attentionBackwardFlops(samples(), sampleLength));
        });
    }
}
