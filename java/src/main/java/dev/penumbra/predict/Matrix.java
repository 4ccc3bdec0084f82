package dev.penumbra.predict;

import java.util.Arrays;

/**
 * A row-major f32 matrix on the host.
 *
 * <p>Loops over it add multiples of rows to rows: the compiler turns those into vector instructions, which it may not do with
 * sums along a row.
 */
public record Matrix(int rows, int columns, float[] values) {

    public Matrix {
        if (rows < 0 || columns < 0 || values.length != Math.multiplyExact(rows, columns)) {
            throw new IllegalArgumentException(
                    "expected " + rows + " x " + columns + " values, found " + values.length);
        }
    }

    public static Matrix zeros(int rows, int columns) {
        return new Matrix(rows, columns, new float[Math.multiplyExact(rows, columns)]);
    }

    public float get(int row, int column) {
        return values[row * columns + column];
    }

    public void set(int row, int column, float value) {
        values[row * columns + column] = value;
    }

    /** A copy of rows {@code [from, to)}. */
    public Matrix slice(int from, int to) {
        return new Matrix(to - from, columns, Arrays.copyOfRange(values, from * columns, to * columns));
    }

    public Matrix transpose() {
        Matrix result = zeros(columns, rows);
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j < columns; j++) {
                result.values[j * rows + i] = values[i * columns + j];
            }
        }
        return result;
    }

    /** this · right. */
    public Matrix times(Matrix right) {
        if (columns != right.rows) {
            throw new IllegalArgumentException("expected " + columns + " rows on the right, found " + right.rows);
        }
        Matrix result = zeros(rows, right.columns);
        for (int i = 0; i < rows; i++) {
            for (int k = 0; k < columns; k++) {
                addRow(values[i * columns + k], right.values, k * right.columns, result.values, i * right.columns,
                        right.columns);
            }
        }
        return result;
    }

    /** The mean of each column. */
    public float[] columnMeans() {
        double[] sums = new double[columns];
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j < columns; j++) {
                sums[j] += values[i * columns + j];
            }
        }
        float[] means = new float[columns];
        for (int j = 0; j < columns; j++) {
            means[j] = (float) (sums[j] / Math.max(1, rows));
        }
        return means;
    }

    /** y[yAt + j] += factor · x[xAt + j]. */
    public static void addRow(float factor, float[] x, int xAt, float[] y, int yAt, int count) {
        if (factor == 0) {
            return;
        }
        for (int j = 0; j < count; j++) {
            y[yAt + j] += factor * x[xAt + j];
        }
    }
}
