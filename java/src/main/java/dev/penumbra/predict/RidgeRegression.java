package dev.penumbra.predict;

import java.util.stream.IntStream;

/**
 * The normal equations of y = W (x − mean of x) + mean of y, solved for one weight of the penalty or another, and W's best
 * approximation of a low rank.
 *
 * <p>The penalty of coordinate j is lambda times its variance, which is what noise of that size in the inputs would add, and
 * a little of the mean variance, so that coordinates that hardly vary stay harmless.
 */
final class RidgeRegression {

    /** Rows whose products are added up in f32 before they go into the f64 sum; they lie in a core's cache together. */
    private static final int CHUNK = 64;
    /** Part of the mean variance that is added to each coordinate's. */
    private static final double FLOOR = 0.01;
    private static final int LANES = 4;

    private final int h;
    private final int n;
    private final float[] meanX;
    private final float[] meanY;
    /** [h, h], its lower triangle. */
    private final double[][] gram;
    /** [h, n]. */
    private final double[][] cross;

    /**
     * @param x [p, h]
     * @param y [p, n]
     */
    RidgeRegression(Matrix x, Matrix y) {
        h = x.columns();
        n = y.columns();
        meanX = x.columnMeans();
        meanY = y.columnMeans();
        gram = new double[h][];
        cross = new double[h][n];
        for (int i = 0; i < h; i++) {
            gram[i] = new double[i + 1];
        }
        for (int from = 0; from < x.rows(); from += CHUNK) {
            add(x, y, from, Math.min(x.rows(), from + CHUNK));
        }
    }

    private void add(Matrix x, Matrix y, int from, int to) {
        int rows = to - from;
        float[] cx = centred(x, meanX, from, rows);
        float[] cy = centred(y, meanY, from, rows);
        IntStream.range(0, h).parallel().forEach(i -> {
            float[] sumX = new float[i + 1];
            float[] sumY = new float[n];
            for (int p = 0; p < rows; p++) {
                float xi = cx[p * h + i];
                Matrix.addRow(xi, cx, p * h, sumX, 0, i + 1);
                Matrix.addRow(xi, cy, p * n, sumY, 0, n);
            }
            for (int j = 0; j <= i; j++) {
                gram[i][j] += sumX[j];
            }
            for (int j = 0; j < n; j++) {
                cross[i][j] += sumY[j];
            }
        });
    }

    private static float[] centred(Matrix m, float[] means, int from, int rows) {
        float[] result = new float[rows * m.columns()];
        for (int p = 0; p < rows; p++) {
            for (int j = 0; j < m.columns(); j++) {
                result[p * m.columns() + j] = m.get(from + p, j) - means[j];
            }
        }
        return result;
    }

    /** @param a [r, h], @param b [n, r], @param bias [n]: y ≈ b (a x) + bias */
    record LowRank(Matrix a, Matrix b, float[] bias) {
    }

    /**
     * The rank-r map of the smallest penalised squared error: the directions in which the unrestricted solution's outputs vary
     * most are kept.
     */
    LowRank solve(int rank, double lambda) {
        double[][] w = unrestricted(lambda);
        // Wᵀ (G + penalty) W = Wᵀ C: how the fitted outputs vary together.
        double[][] fitted = new double[n][n];
        for (int k = 0; k < h; k++) {
            for (int i = 0; i < n; i++) {
                addRow(w[k][i], cross[k], fitted[i], n);
            }
        }
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < i; j++) {
                fitted[i][j] = fitted[j][i] = (fitted[i][j] + fitted[j][i]) / 2;
            }
        }
        double[][] directions = SymmetricEigen.of(fitted).vectors();
        int r = Math.min(rank, n);
        Matrix a = Matrix.zeros(r, h);
        Matrix b = Matrix.zeros(n, r);
        for (int i = 0; i < r; i++) {
            for (int k = 0; k < h; k++) {
                a.set(i, k, (float) dot(directions[i], w[k], n));
            }
            for (int j = 0; j < n; j++) {
                b.set(j, i, (float) directions[i][j]);
            }
        }
        float[] bias = new float[n];
        double[] z = new double[r];
        for (int i = 0; i < r; i++) {
            for (int k = 0; k < h; k++) {
                z[i] += a.get(i, k) * (double) meanX[k];
            }
        }
        for (int j = 0; j < n; j++) {
            double at = meanY[j];
            for (int i = 0; i < r; i++) {
                at -= b.get(j, i) * z[i];
            }
            bias[j] = (float) at;
        }
        return new LowRank(a, b, bias);
    }

    /** (G + penalty)⁻¹ C: [h, n], by Cholesky's decomposition. */
    private double[][] unrestricted(double lambda) {
        double trace = 0;
        for (int i = 0; i < h; i++) {
            trace += gram[i][i];
        }
        // A batch in which nothing varies has no solution but 0.
        double floor = FLOOR * trace / h + Double.MIN_NORMAL;
        double[][] l = new double[h][];
        for (int i = 0; i < h; i++) {
            l[i] = gram[i].clone();
            l[i][i] += lambda * (gram[i][i] + floor);
        }
        for (int i = 0; i < h; i++) {
            for (int j = 0; j <= i; j++) {
                double sum = l[i][j] - dot(l[i], l[j], j);
                l[i][j] = i == j ? Math.sqrt(Math.max(sum, Double.MIN_NORMAL)) : sum / l[j][j];
            }
        }
        double[][] w = new double[h][];
        for (int i = 0; i < h; i++) {
            w[i] = cross[i].clone();
            for (int j = 0; j < i; j++) {
                addRow(-l[i][j], w[j], w[i], n);
            }
            scale(w[i], 1 / l[i][i]);
        }
        for (int i = h - 1; i >= 0; i--) {
            scale(w[i], 1 / l[i][i]);
            for (int j = 0; j < i; j++) {
                addRow(-l[i][j], w[i], w[j], n);
            }
        }
        return w;
    }

    private static void addRow(double factor, double[] x, double[] y, int count) {
        for (int j = 0; j < count; j++) {
            y[j] += factor * x[j];
        }
    }

    private static void scale(double[] x, double factor) {
        for (int j = 0; j < x.length; j++) {
            x[j] *= factor;
        }
    }

    /** Four sums beside one another: one alone would wait for each addition. */
    private static double dot(double[] x, double[] y, int count) {
        double s0 = 0;
        double s1 = 0;
        double s2 = 0;
        double s3 = 0;
        int j = 0;
        for (; j + LANES <= count; j += LANES) {
            s0 += x[j] * y[j];
            s1 += x[j + 1] * y[j + 1];
            s2 += x[j + 2] * y[j + 2];
            s3 += x[j + 3] * y[j + 3];
        }
        for (; j < count; j++) {
            s0 += x[j] * y[j];
        }
        return s0 + s1 + (s2 + s3);
    }
}
