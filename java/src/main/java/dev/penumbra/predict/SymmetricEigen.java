package dev.penumbra.predict;

import java.util.Arrays;

/**
 * Eigenvalues and eigenvectors of a symmetric matrix by Jacobi's rotations, each of which makes one pair of elements 0. They
 * are slower than other ways and right to the last digits, also of eigenvalues that are near one another.
 *
 * @param values descending
 * @param vectors [n, n]: row i belongs to value i
 */
record SymmetricEigen(double[] values, double[][] vectors) {

    /** Quadratic convergence: a matrix of any size that is seen here takes 6 to 10. */
    private static final int MOST_SWEEPS = 30;
    /** Of the diagonal's norm; what is left of the others then is below rounding. */
    private static final double TOLERANCE = 1e-12;

    /** @param matrix [n, n], symmetric; not changed */
    static SymmetricEigen of(double[][] matrix) {
        int n = matrix.length;
        double[][] a = new double[n][];
        double[][] v = new double[n][n];
        for (int i = 0; i < n; i++) {
            a[i] = matrix[i].clone();
            v[i][i] = 1;
        }
        for (int sweep = 0; sweep < MOST_SWEEPS && isOffDiagonalLarge(a); sweep++) {
            for (int p = 0; p < n; p++) {
                for (int q = p + 1; q < n; q++) {
                    rotate(a, v, p, q);
                }
            }
        }
        return sorted(a, v);
    }

    private static boolean isOffDiagonalLarge(double[][] a) {
        double diagonal = 0;
        double others = 0;
        for (int i = 0; i < a.length; i++) {
            diagonal += a[i][i] * a[i][i];
            for (int j = 0; j < i; j++) {
                others += 2 * a[i][j] * a[i][j];
            }
        }
        return others > TOLERANCE * TOLERANCE * (diagonal + others);
    }

    /** a = Jᵀ a J and v = Jᵀ v with the rotation J in (p, q) that makes a[p][q] 0. */
    private static void rotate(double[][] a, double[][] v, int p, int q) {
        double apq = a[p][q];
        if (apq == 0) {
            return;
        }
        double theta = (a[q][q] - a[p][p]) / (2 * apq);
        double t = Math.copySign(1, theta) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        double c = 1 / Math.sqrt(t * t + 1);
        double s = t * c;
        rotateRows(a[p], a[q], c, s);
        for (double[] row : a) {
            double rp = row[p];
            double rq = row[q];
            row[p] = c * rp - s * rq;
            row[q] = s * rp + c * rq;
        }
        rotateRows(v[p], v[q], c, s);
    }

    private static void rotateRows(double[] x, double[] y, double c, double s) {
        for (int k = 0; k < x.length; k++) {
            double xk = x[k];
            double yk = y[k];
            x[k] = c * xk - s * yk;
            y[k] = s * xk + c * yk;
        }
    }

    private static SymmetricEigen sorted(double[][] a, double[][] v) {
        int n = a.length;
        Integer[] order = new Integer[n];
        for (int i = 0; i < n; i++) {
            order[i] = i;
        }
        Arrays.sort(order, (i, j) -> Double.compare(a[j][j], a[i][i]));
        double[] values = new double[n];
        double[][] vectors = new double[n][];
        for (int i = 0; i < n; i++) {
            values[i] = a[order[i]][order[i]];
            vectors[i] = v[order[i]];
        }
        return new SymmetricEigen(values, vectors);
    }
}
