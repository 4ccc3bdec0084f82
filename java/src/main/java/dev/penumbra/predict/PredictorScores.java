package dev.penumbra.predict;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** What {@code pnb_predict_mass} computes, on the host: for judging predictors while they are made. */
public final class PredictorScores {

    private PredictorScores() {
    }

    /**
     * Scores [lists, blocks] of pooled rows [p, h].
     *
     * @param poolsPerList pooled row i belongs to list i / poolsPerList
     */
    public static Matrix of(LowRankPredictor predictor, Matrix pooled, int poolsPerList) {
        int units = predictor.units();
        int rank = predictor.rank();
        Matrix at = new Matrix(rank, predictor.hidden(), predictor.a()).transpose();
        Matrix bt = new Matrix(units, rank, predictor.b()).transpose();
        Matrix scores = Matrix.zeros(Math.ceilDiv(pooled.rows(), poolsPerList), predictor.blocks());
        IntStream.range(0, scores.rows()).parallel().forEach(list -> {
            float[] z = new float[rank];
            float[] unit = new float[units];
            int to = Math.min(pooled.rows(), (list + 1) * poolsPerList);
            for (int p = list * poolsPerList; p < to; p++) {
                forward(pooled.values(), p * pooled.columns(), at, bt, predictor.bias(), z, unit);
                for (int j = 0; j < units; j++) {
                    float value = Math.max(0, unit[j]) * (predictor.norms() == null ? 1 : predictor.norms()[j]);
                    scores.values()[list * scores.columns() + j / predictor.unitsPerScore()] += value;
                }
            }
        });
        return scores;
    }

    /** z = x · aᵀ and u = z · bᵀ + bias, of one row. */
    static void forward(float[] x, int xAt, Matrix at, Matrix bt, float @Nullable [] bias,
            float[] z, float[] u) {
        Arrays.fill(z, 0);
        for (int k = 0; k < at.rows(); k++) {
            Matrix.addRow(x[xAt + k], at.values(), k * z.length, z, 0, z.length);
        }
        if (bias == null) {
            Arrays.fill(u, 0);
        } else {
            System.arraycopy(bias, 0, u, 0, u.length);
        }
        for (int r = 0; r < z.length; r++) {
            Matrix.addRow(z[r], bt.values(), r * u.length, u, 0, u.length);
        }
    }
}
