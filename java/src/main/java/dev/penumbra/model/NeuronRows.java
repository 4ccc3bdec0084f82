package dev.penumbra.model;

import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** An MLP's matrices with a row for each neuron, in the order of the neurons' places, as they are packed. */
final class NeuronRows {

    /**
     * Rows and columns that are turned at once, in an array of their own: rows of a matrix lie a power of two apart, and a
     * column of it would find place in few of the first cache's sets.
     */
    private static final int TILE = 64;

    private NeuronRows() {
    }

    /** fc1 [neurons, h] in another order, of its own dtype. */
    static Tensor ofFc1(Arena owner, Tensor fc1, NeuronOrder order) {
        Tensor rows = Tensor.allocate(owner, fc1.dtype(), fc1.shape());
        order.copyRows(fc1, rows);
        return rows;
    }

    /** fc2 [h, neurons] transposed: [neurons, h]. Several threads write it: {@code owner} must be a shared arena. */
    static Tensor ofFc2(Arena owner, Tensor fc2, @Nullable NeuronOrder order) {
        int hidden = Math.toIntExact(fc2.shape().dim(0));
        int neurons = Math.toIntExact(fc2.shape().dim(1));
        Tensor rows = Tensor.allocate(owner, fc2.dtype(), Shape.of(neurons, hidden));
        MemorySegment from = fc2.segment();
        MemorySegment to = rows.segment();
        // Where each original neuron goes: the source, a mapped file, is read in its order.
        int[] places = (order == null ? NeuronOrder.identity(neurons) : order.inverse()).toArray();
        boolean wide = fc2.dtype().byteSize() == Integer.BYTES;
        IntStream.range(0, Math.ceilDiv(hidden, TILE)).parallel().forEach(band -> {
            int first = band * TILE;
            int height = Math.min(hidden - first, TILE);
            if (wide) {
                turnInts(from, to, first, height, hidden, places);
            } else {
                turnShorts(from, to, first, height, hidden, places);
            }
        });
        return rows;
    }

    /** Rows [first, first + height) of a matrix of 4-byte elements become columns. */
    private static void turnInts(MemorySegment from, MemorySegment to, int first, int height, int hidden, int[] places) {
        int[] tile = new int[TILE * TILE];
        int[] row = new int[TILE];
        for (int column = 0; column < places.length; column += TILE) {
            int width = Math.min(places.length - column, TILE);
            for (int i = 0; i < height; i++) {
                long at = ((long) (first + i) * places.length + column) * Integer.BYTES;
                MemorySegment.copy(from, ValueLayout.JAVA_INT_UNALIGNED, at, tile, i * TILE, width);
            }
            for (int j = 0; j < width; j++) {
                for (int i = 0; i < height; i++) {
                    row[i] = tile[i * TILE + j];
                }
                long at = ((long) places[column + j] * hidden + first) * Integer.BYTES;
                MemorySegment.copy(row, 0, to, ValueLayout.JAVA_INT_UNALIGNED, at, height);
            }
        }
    }

    /** As {@link #turnInts}, of 2-byte elements. */
    private static void turnShorts(MemorySegment from, MemorySegment to, int first, int height, int hidden, int[] places) {
        short[] tile = new short[TILE * TILE];
        short[] row = new short[TILE];
        for (int column = 0; column < places.length; column += TILE) {
            int width = Math.min(places.length - column, TILE);
            for (int i = 0; i < height; i++) {
                long at = ((long) (first + i) * places.length + column) * Short.BYTES;
                MemorySegment.copy(from, ValueLayout.JAVA_SHORT_UNALIGNED, at, tile, i * TILE, width);
            }
            for (int j = 0; j < width; j++) {
                for (int i = 0; i < height; i++) {
                    row[i] = tile[i * TILE + j];
                }
                long at = ((long) places[column + j] * hidden + first) * Short.BYTES;
                MemorySegment.copy(row, 0, to, ValueLayout.JAVA_SHORT_UNALIGNED, at, height);
            }
        }
    }

    /** The norm of each row of a host matrix. */
    static float[] rowNorms(Tensor matrix) {
        int rows = Math.toIntExact(matrix.shape().dim(0));
        float[] norms = new float[rows];
        IntStream.range(0, rows).parallel().forEach(row -> {
            double sum = 0;
            for (float value : matrix.slice(0, row, row + 1L).toFloats()) {
                sum += (double) value * value;
            }
            norms[row] = (float) Math.sqrt(sum);
        });
        return norms;
    }

    /** The norm of each column of a host matrix, which is read row by row. */
    static float[] columnNorms(Tensor matrix) {
        int rows = Math.toIntExact(matrix.shape().dim(0));
        double[] sums = new double[Math.toIntExact(matrix.shape().dim(1))];
        for (int row = 0; row < rows; row++) {
            float[] values = matrix.slice(0, row, row + 1L).toFloats();
            for (int j = 0; j < values.length; j++) {
                sums[j] += (double) values[j] * values[j];
            }
        }
        float[] norms = new float[sums.length];
        for (int j = 0; j < norms.length; j++) {
            norms[j] = (float) Math.sqrt(sums[j]);
        }
        return norms;
    }
}
