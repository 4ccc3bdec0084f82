package dev.penumbra.expose;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.data.Batch;
import dev.penumbra.model.AttentionObserver;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Takes down, as a pass runs, what each pair of blocks weighs in every head, and the pooled rows that queries and keys are made
 * of. Masses are added up block by block as scores are computed again: no matrix of scores is stored.
 */
final class AttentionCollector implements AttentionObserver, AutoCloseable {

    private final Backend backend;
    private final int blockSize;
    private final int poolRows;
    private final int width;
    private final List<Layer> layers = new ArrayList<>();
    private int heads;

    /** What one layer's latest batch left on the device. */
    private static final class Layer {
        private @Nullable Arena owner;
        private @Nullable Tensor masses;
        private @Nullable Tensor inputs;
        private boolean pooled;
        private long slots;
    }

    /** @param longest tokens of the longest sample that may come */
    AttentionCollector(Backend backend, int layers, int blockSize, int poolRows, int longest) {
        this.backend = backend;
        this.blockSize = blockSize;
        this.poolRows = poolRows;
        width = Math.ceilDiv(longest, blockSize);
        for (int i = 0; i < layers; i++) {
            this.layers.add(new Layer());
        }
    }

    @Override
    public int poolRows() {
        return poolRows;
    }

    /** Of a layer; known once a batch has run. */
    int heads() {
        return heads;
    }

    @Override
    public void afterAttention(int index, Seen seen) {
        Layer layer = layers.get(index);
        long tokens = seen.q().shape().dim(0);
        heads = Math.toIntExact(seen.q().shape().dim(1));
        long headDim = seen.q().shape().dim(2);
        layer.slots = AttentionBlocks.slots(tokens, seen.cuSeqlens().shape().dim(0) - 1, blockSize);
        reserve(layer, heads * layer.slots * width, seen.pooled());
        Tensor mass = layer.masses.slice(0, 0, heads * layer.slots * width).reshape(heads, layer.slots, width);
        backend.run(new AttentionMass((float) (1 / Math.sqrt(headDim)), seen.q(), seen.k(), seen.lse(), seen.cuSeqlens(),
                seen.maxSeqlen(), blockSize, 1, mass));
        layer.pooled = seen.pooled() != null;
        if (seen.pooled() != null) {
            // The pass pools every layer's input in one place.
            backend.run(new Convert(seen.pooled(), layer.inputs.slice(0, 0, seen.pooled().shape().dim(0))));
        }
    }

    /** Batches have more or fewer samples, and with them slots: what they need grows to the largest. */
    private void reserve(Layer layer, long values, @Nullable Tensor pooled) {
        boolean fits = layer.masses != null && layer.masses.shape().dim(0) >= values
                && (pooled == null || layer.inputs != null && layer.inputs.shape().dim(0) >= pooled.shape().dim(0));
        if (fits) {
            return;
        }
        backend.synchronize();
        if (layer.owner != null) {
            layer.owner.close();
        }
        layer.owner = Arena.ofShared();
        layer.masses = backend.allocate(layer.owner, DType.F32, Shape.of(values + values / 2));
        if (pooled != null) {
            layer.inputs = backend.allocate(layer.owner, DType.F32,
                    Shape.of(pooled.shape().dim(0) + pooled.shape().dim(0) / 2, pooled.shape().dim(1)));
        }
    }

    /** Adds the samples of the batch that has just run to what is known. */
    void add(int index, Batch batch, AttentionUse use) {
        int[] borders = batch.cuSeqlens();
        List<Integer> lengthy = new ArrayList<>();
        for (int s = 0; s < batch.samples(); s++) {
            if (borders[s + 1] - borders[s] >= AttentionUse.FEWEST_BLOCKS * blockSize) {
                lengthy.add(s);
            }
        }
        if (lengthy.isEmpty()) {
            return;
        }
        List<float[]> masses = layers.stream()
                .map(layer -> backend.toFloats(layer.masses.slice(0, 0, heads * layer.slots * width))).toList();
        List<float @Nullable []> inputs = new ArrayList<>();
        for (Layer layer : layers) {
            inputs.add(layer.pooled ? backend.toFloats(layer.inputs) : null);
        }
        for (int s : lengthy) {
            AttentionUse.Shape shape = AttentionUse.Shape.of(index, borders[s], borders[s + 1], blockSize, poolRows);
            int firstPool = AttentionUse.Shape.firstPool(borders[s], poolRows);
            int firstSlot = borders[s] / blockSize + s;
            List<float[]> mass = new ArrayList<>();
            List<float @Nullable []> rows = new ArrayList<>();
            for (int i = 0; i < layers.size(); i++) {
                mass.add(ofSample(masses.get(i), layers.get(i).slots, firstSlot, shape.blocks()));
                float[] all = inputs.get(i);
                if (all == null) {
                    rows.add(null);
                } else {
                    int hidden = Math.toIntExact(layers.get(i).inputs.shape().dim(1));
                    rows.add(Arrays.copyOfRange(all, firstPool * hidden,
                            (firstPool + shape.blockOf().length) * hidden));
                }
            }
            use.add(shape, rows, mass);
        }
    }

    /** [heads, blocks, blocks] of [heads, slots, width]. */
    private float[] ofSample(float[] masses, long slots, int firstSlot, int blocks) {
        float[] result = new float[heads * blocks * blocks];
        for (int h = 0; h < heads; h++) {
            for (int i = 0; i < blocks; i++) {
                System.arraycopy(masses, Math.toIntExact((h * slots + firstSlot + i) * width), result,
                        (h * blocks + i) * blocks, blocks);
            }
        }
        return result;
    }

    @Override
    public void close() {
        backend.synchronize();
        for (Layer layer : layers) {
            if (layer.owner != null) {
                layer.owner.close();
                layer.owner = null;
                layer.masses = null;
                layer.inputs = null;
            }
        }
    }
}
