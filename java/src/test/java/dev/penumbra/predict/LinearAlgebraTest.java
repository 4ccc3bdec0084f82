package dev.penumbra.predict;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** The linear algebra behind predictors, against its definitions. */
class LinearAlgebraTest {

    private static Matrix random(int rows, int columns, Random random) {
        Matrix m = Matrix.zeros(rows, columns);
        for (int i = 0; i < m.values().length; i++) {
            m.values()[i] = (float) random.nextGaussian();
        }
        return m;
    }

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 7, 40})
    void eigenvectorsAreOrthonormalAndGiveTheMatrixBack(int n) {
        Random random = new Random(n);
        double[][] a = new double[n][n];
        for (int i = 0; i < n; i++) {
            for (int j = 0; j <= i; j++) {
                a[i][j] = a[j][i] = random.nextGaussian();
            }
        }
        SymmetricEigen eigen = SymmetricEigen.of(a);
        for (int i = 0; i < n; i++) {
            assertThat(i == 0 || eigen.values()[i] <= eigen.values()[i - 1]).as("descending, n = %d", n).isTrue();
            for (int j = 0; j < n; j++) {
                double back = 0;
                double product = 0;
                for (int k = 0; k < n; k++) {
                    back += eigen.values()[k] * eigen.vectors()[k][i] * eigen.vectors()[k][j];
                    product += eigen.vectors()[i][k] * eigen.vectors()[j][k];
                }
                assertThat(back).as("element %d, %d of %d", i, j, n).isCloseTo(a[i][j], within(1e-10));
                assertThat(product).as("vectors %d and %d of %d", i, j, n).isCloseTo(i == j ? 1 : 0, within(1e-10));
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"30, 12, 3", "12, 30, 5", "64, 64, 1", "5, 9, 8"})
    void singularVectorsOfALowRankMatrixGiveItBack(int rows, int columns, int rank) {
        Random random = new Random(rows);
        int inner = Math.min(rank, Math.min(rows, columns));
        Matrix w = random(rows, inner, random).times(random(inner, columns, random));
        Matrix v = LowRankSvd.rightVectors(w, rank, 1);
        Matrix back = w.times(v.transpose()).times(v);
        for (int i = 0; i < w.values().length; i++) {
            assertThat(back.values()[i]).as("element %d of %d x %d, rank %d", i, rows, columns, rank)
                    .isCloseTo(w.values()[i], within(1e-3f));
        }
    }

    @ParameterizedTest
    @CsvSource({"200, 9, 6, 2", "300, 20, 4, 4", "150, 33, 17, 5"})
    void theClosedFormFindsALinearMapOfItsRank(int rows, int h, int n, int rank) {
        Random random = new Random(h);
        Matrix x = random(rows, h, random);
        Matrix y = x.times(random(h, rank, random)).times(random(rank, n, random));
        for (int i = 0; i < y.values().length; i++) {
            y.values()[i] += 3 + i % n;
        }
        RidgeRegression.LowRank map = new RidgeRegression(x, y).solve(rank, 1e-7);
        LowRankPredictor predictor = new LowRankPredictor(map.a().rows(), h, n, map.a().values(), map.b().values(),
                map.bias(),
                null, 1, 1);
        Matrix answers = PredictorScores.of(predictor, x, 1);
        for (int i = 0; i < y.values().length; i++) {
            assertThat(answers.values()[i]).as("answer %d of %d x %d, rank %d", i, rows, n, rank)
                    .isCloseTo(Math.max(0, y.values()[i]), within(2e-3f));
        }
    }
}
