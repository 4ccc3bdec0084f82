package dev.penumbra.predict;

import java.util.SplittableRandom;

/**
 * The leading right singular vectors of a matrix by subspace iteration from a random start (Halko, Martinsson and Tropp,
 * "Finding structure with randomness", 2011).
 */
public final class LowRankSvd {

    /** Each sharpens the vectors by the square of the ratio of neighbouring singular values. */
    private static final int ITERATIONS = 3;
    /** Columns beside those asked for; they take the error of the start. */
    private static final int OVERSAMPLING = 8;

    private LowRankSvd() {
    }

    /**
     * V [r, columns] with orthonormal rows: W Vᵀ V is nearly the best approximation of W [rows, columns] of rank r. Fewer rows
     * where W has fewer.
     */
    public static Matrix rightVectors(Matrix w, int rank, long seed) {
        int width = Math.min(rank + OVERSAMPLING, Math.min(w.rows(), w.columns()));
        SplittableRandom random = new SplittableRandom(seed);
        Matrix q = Matrix.zeros(width, w.columns());
        for (int i = 0; i < q.values().length; i++) {
            q.values()[i] = (float) random.nextGaussian();
        }
        orthonormalise(q);
        for (int i = 0; i < ITERATIONS; i++) {
            // q = (Wᵀ W qᵀ)ᵀ
            q = w.times(q.transpose()).transpose().times(w);
            orthonormalise(q);
        }
        // Within the subspace, the directions in which W is largest come first.
        Matrix image = w.times(q.transpose());
        double[][] gram = new double[width][width];
        for (int p = 0; p < image.rows(); p++) {
            for (int i = 0; i < width; i++) {
                double factor = image.get(p, i);
                for (int j = 0; j < width; j++) {
                    gram[i][j] += factor * image.get(p, j);
                }
            }
        }
        double[][] turn = SymmetricEigen.of(gram).vectors();
        int r = Math.min(rank, width);
        Matrix v = Matrix.zeros(r, w.columns());
        for (int i = 0; i < r; i++) {
            for (int k = 0; k < width; k++) {
                Matrix.addRow((float) turn[i][k], q.values(), k * w.columns(), v.values(), i * w.columns(), w.columns());
            }
        }
        return v;
    }

    /** Gram and Schmidt's way, twice over each row, which is enough for f32. */
    private static void orthonormalise(Matrix q) {
        int n = q.columns();
        for (int i = 0; i < q.rows(); i++) {
            for (int again = 0; again < 2; again++) {
                for (int j = 0; j < i; j++) {
                    Matrix.addRow((float) -dot(q, i, j), q.values(), j * n, q.values(), i * n, n);
                }
            }
            double norm = Math.sqrt(dot(q, i, i));
            // A row that the others span is left 0: it adds nothing.
            float inverse = norm > Float.MIN_NORMAL ? (float) (1 / norm) : 0;
            for (int k = 0; k < n; k++) {
                q.values()[i * n + k] *= inverse;
            }
        }
    }

    private static double dot(Matrix q, int i, int j) {
        double sum = 0;
        for (int k = 0; k < q.columns(); k++) {
            sum += q.get(i, k) * (double) q.get(j, k);
        }
        return sum;
    }
}
