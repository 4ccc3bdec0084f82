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

    /** Rows and columns that are turned at once: their cache lines stay in the first level's cache. */
    private static final int TILE = 64;

    private NeuronRows() {
    }

    /** fc1 [neurons, h] in another order, of its own dtype; memory of {@code owner}, which several threads must be able to use. */
    static Tensor ofFc1(Arena owner, Tensor fc1, NeuronOrder order) {
        Tensor rows = Tensor.allocate(owner, fc1.dtype(), fc1.shape());
        order.copyRows(fc1, rows);
        return rows;
    }

    /** fc2 [h, neurons] transposed: [neurons, h]. */
    static Tensor ofFc2(Arena owner, Tensor fc2, @Nullable NeuronOrder order) {
        int hidden = Math.toIntExact(fc2.shape().dim(0));
        int neurons = Math.toIntExact(fc2.shape().dim(1));
        Tensor rows = Tensor.allocate(owner, fc2.dtype(), Shape.of(neurons, hidden));
        MemorySegment from = fc2.segment();
        MemorySegment to = rows.segment();
        boolean wide = fc2.dtype().byteSize() == 4;
        // Where each original neuron goes: the source, a mapped file, is read in its order.
        int[] places = (order == null ? NeuronOrder.identity(neurons) : order.inverse()).toArray();
        IntStream.range(0, Math.ceilDiv(hidden, TILE)).parallel().forEach(band -> {
            int first = band * TILE;
            int end = Math.min(hidden, first + TILE);
            for (int column = 0; column < neurons; column += TILE) {
                int lastColumn = Math.min(neurons, column + TILE);
                if (wide) {
                    turnWide(from, to, first, end, column, lastColumn, hidden, neurons, places);
                } else {
                    turnNarrow(from, to, first, end, column, lastColumn, hidden, neurons, places);
                }
            }
        });
        return rows;
    }

    private static void turnWide(MemorySegment from, MemorySegment to, int first, int end, int column, int lastColumn,
            int hidden, int neurons, int[] places) {
        for (int j = column; j < lastColumn; j++) {
            long row = (long) places[j] * hidden;
            for (int i = first; i < end; i++) {
                to.set(ValueLayout.JAVA_INT_UNALIGNED, 4 * (row + i),
                        from.get(ValueLayout.JAVA_INT_UNALIGNED, 4 * ((long) i * neurons + j)));
            }
        }
    }

    private static void turnNarrow(MemorySegment from, MemorySegment to, int first, int end, int column, int lastColumn,
            int hidden, int neurons, int[] places) {
        for (int j = column; j < lastColumn; j++) {
            long row = (long) places[j] * hidden;
            for (int i = first; i < end; i++) {
                to.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * (row + i),
                        from.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2 * ((long) i * neurons + j)));
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
