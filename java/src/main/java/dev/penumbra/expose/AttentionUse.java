package dev.penumbra.expose;

import dev.penumbra.predict.PooledAttention;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** What attention did with samples of some text, layer by layer: pooled inputs, and each pair of blocks' mass. */
final class AttentionUse {

    /** Shorter samples say nothing: all their blocks are kept always. */
    static final int FEWEST_BLOCKS = 2;

    /**
     * One sample.
     *
     * @param batch that it came in
     * @param blocks that it has
     * @param blockOf of its pooled rows
     */
    @SuppressWarnings("ArrayRecordComponent")
    record Shape(int batch, int blocks, int[] blockOf) {

        /**
         * Of rows [from, to) of a batch; a pooled row is the sample's that its middle belongs to.
         *
         * @param firstPool the batch's pooled row that is the sample's first
         */
        static Shape of(int batch, int from, int to, int blockSize, int poolRows) {
            int first = firstPool(from, poolRows);
            int[] blockOf = IntStream.iterate(first, g -> g * poolRows + poolRows / 2 < to, g -> g + 1)
                    .map(g -> (g * poolRows + poolRows / 2 - from) / blockSize).toArray();
            return new Shape(batch, Math.ceilDiv(to - from, blockSize), blockOf);
        }

        /** The first pooled row whose middle lies at {@code row} or after it. */
        static int firstPool(int row, int poolRows) {
            return Math.max(0, Math.ceilDiv(row - poolRows / 2, poolRows));
        }
    }

    private final int layers;
    private final List<Shape> shapes = new ArrayList<>();
    /** By layer, then by sample: [pools, hidden]; null where a layer's input is not pooled. */
    private final List<List<float @Nullable []>> pooled = new ArrayList<>();
    /** By layer, then by sample: [heads, blocks, blocks]. */
    private final List<List<float[]>> masses = new ArrayList<>();

    AttentionUse(int layers) {
        this.layers = layers;
        for (int i = 0; i < layers; i++) {
            pooled.add(new ArrayList<>());
            masses.add(new ArrayList<>());
        }
    }

    void add(Shape shape, List<float @Nullable []> inputs, List<float[]> mass) {
        shapes.add(shape);
        for (int i = 0; i < layers; i++) {
            pooled.get(i).add(inputs.get(i));
            masses.get(i).add(mass.get(i));
        }
    }

    int layers() {
        return layers;
    }

    boolean isEmpty() {
        return shapes.isEmpty();
    }

    List<Shape> shapes() {
        return shapes;
    }

    List<float[]> masses(int layer) {
        return masses.get(layer);
    }

    /** Whether a predictor can be made from a layer's inputs. */
    boolean isPooled(int layer) {
        return !isEmpty() && pooled.get(layer).getFirst() != null;
    }

    /** All samples' pooled rows of a layer, one sample below another. */
    float[] pooled(int layer) {
        float[] joined = new float[pooled.get(layer).stream().mapToInt(part -> part.length).sum()];
        int at = 0;
        for (float[] part : pooled.get(layer)) {
            System.arraycopy(part, 0, joined, at, part.length);
            at += part.length;
        }
        return joined;
    }

    /** A head's masses with a sample: [blocks, blocks]. */
    float[] mass(int layer, int sample, int head) {
        int n = shapes.get(sample).blocks();
        return Arrays.copyOfRange(masses.get(layer).get(sample), head * n * n, (head + 1) * n * n);
    }

    /**
     * One head's samples.
     *
     * @param qk [pools, 2 · heads · headDim]: pooled queries and, behind them, keys of all heads and samples
     */
    List<PooledAttention> head(int layer, int head, int heads, float[] qk) {
        int pools = shapes.stream().mapToInt(shape -> shape.blockOf().length).sum();
        int row = qk.length / pools;
        int headDim = row / 2 / heads;
        List<PooledAttention> result = new ArrayList<>();
        int at = 0;
        for (int s = 0; s < shapes.size(); s++) {
            Shape shape = shapes.get(s);
            int count = shape.blockOf().length;
            float[] q = new float[count * headDim];
            float[] k = new float[count * headDim];
            for (int g = 0; g < count; g++) {
                int from = (at + g) * row + head * headDim;
                System.arraycopy(qk, from, q, g * headDim, headDim);
                System.arraycopy(qk, from + row / 2, k, g * headDim, headDim);
            }
            result.add(new PooledAttention(shape.blocks(), shape.blockOf(), q, k, mass(layer, s, head)));
            at += count;
        }
        return result;
    }

    /** The samples of batches with this parity; all where those are none. */
    int[] half(int parity) {
        int[] half = IntStream.range(0, shapes.size()).filter(s -> shapes.get(s).batch() % 2 == parity).toArray();
        return half.length > 0 ? half : IntStream.range(0, shapes.size()).toArray();
    }
}
