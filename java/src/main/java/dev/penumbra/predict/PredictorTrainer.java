package dev.penumbra.predict;

import java.util.Arrays;
import java.util.SplittableRandom;
import java.util.function.ToDoubleFunction;

/**
 * Trains a {@link LowRankPredictor}: the best linear map of its rank first, in closed form, then Adam under the ReLU that the
 * map's answers go through.
 *
 * <p>Errors of blocks that are chosen anyway cost nothing, those of blocks near the border do: a block counts the less the
 * heavier it is beside the middle one. Inputs are perturbed, by the ridge and by drawn noise, so that scores stay right while
 * adapters move them.
 */
public final class PredictorTrainer {

    /**
     * A block whose mean mass is the middle one's counts half. The middle is the median, but this part of the mean at least: where
     * most blocks never fire the median is 0, and weights would span what floats do not.
     */
    private static final double LEAST_MIDDLE = 1.0 / 16;
    private static final double[] RIDGES = {1e-3, 1e-2, 1e-1};
    /** Steps of a weight, as a part of the matrix's root mean square. */
    private static final double RATE = 0.02;
    private static final int LISTS_PER_STEP = 4;
    /** Error of each pooled row beside that of the list: what a list's rows tell apart is no less true. */
    private static final float ROW_SHARE = 0.2f;
    private static final int NOISE_TABLE = 1 << 16;

    /**
     * How to train.
     *
     * @param rank of the predictor, at most {@link LowRankPredictor#MAX_RANK}
     * @param poolRows tokens of a pooled row
     * @param poolsPerList pooled rows of a list
     * @param epochs of Adam; 0: the closed form alone
     * @param noise standard deviation of what perturbs an input, as a part of the input's own
     */
    public record Settings(int rank, int poolRows, int poolsPerList, int epochs, double noise, long seed) {
    }

    private final Settings settings;
    private final ToDoubleFunction<LowRankPredictor> judge;
    private final Matrix x;
    private final Matrix y;
    private final float scale;
    private final float[] importance;

    private LowRankPredictor best;
    private double bestJudgement = Double.NEGATIVE_INFINITY;

    private PredictorTrainer(Matrix x, Matrix y, Settings settings, ToDoubleFunction<LowRankPredictor> judge) {
        this.settings = settings;
        this.judge = judge;
        this.x = x;
        float[] means = y.columnMeans();
        double sum = 0;
        for (float mean : means) {
            sum += mean;
        }
        scale = (float) Math.max(sum / means.length, Float.MIN_NORMAL);
        this.y = Matrix.zeros(y.rows(), y.columns());
        for (int i = 0; i < y.values().length; i++) {
            this.y.values()[i] = y.values()[i] / scale;
        }
        importance = importance(means, scale);
    }

    /** @param overall the mean of the means */
    private static float[] importance(float[] means, float overall) {
        float[] sorted = means.clone();
        Arrays.sort(sorted);
        double middle = Math.max(sorted[sorted.length / 2], overall * LEAST_MIDDLE);
        float[] result = new float[means.length];
        for (int b = 0; b < result.length; b++) {
            result[b] = (float) (1 / (1 + Math.pow(means[b] / middle, 2)));
        }
        return result;
    }

    /**
     * Trains on pooled inputs and the masses of their rows, and gives the predictor that {@code judge} likes best of those
     * on the way.
     *
     * @param x [p, hidden]: pooled rows; whole lists of {@code poolsPerList}
     * @param y [p, blocks]: what each block weighs over the row's tokens
     * @param judge tells how good a predictor is, on other text; more is better
     */
    public static LowRankPredictor train(Matrix x, Matrix y, Settings settings,
            ToDoubleFunction<LowRankPredictor> judge) {
        if (x.rows() != y.rows() || x.rows() < settings.poolsPerList()) {
            throw new IllegalArgumentException("expected as many inputs as targets, and a list of " + settings.poolsPerList()
                    + " or more, found " + x.rows() + " and " + y.rows());
        }
        PredictorTrainer trainer = new PredictorTrainer(x, y, settings, judge);
        trainer.solve();
        if (settings.epochs() > 0) {
            trainer.refine();
        }
        return trainer.best;
    }

    private void consider(LowRankPredictor candidate) {
        double judgement = judge.applyAsDouble(candidate);
        if (best == null || judgement > bestJudgement) {
            best = candidate;
            bestJudgement = judgement;
        }
    }

    /** The closed form, at the ridge that suits other text best. */
    private void solve() {
        Matrix weighted = Matrix.zeros(y.rows(), y.columns());
        for (int i = 0; i < y.values().length; i++) {
            weighted.values()[i] = y.values()[i] * (float) Math.sqrt(importance[i % y.columns()]);
        }
        RidgeRegression regression = new RidgeRegression(x, weighted);
        for (double ridge : RIDGES) {
            RidgeRegression.LowRank map = regression.solve(settings.rank(), ridge + settings.noise() * settings.noise());
            float[] b = map.b().values().clone();
            float[] bias = map.bias().clone();
            for (int k = 0; k < bias.length; k++) {
                float back = scale / (float) Math.sqrt(importance[k]);
                bias[k] *= back;
                for (int r = 0; r < map.b().columns(); r++) {
                    b[k * map.b().columns() + r] *= back;
                }
            }
            consider(predictor(map.a().values(), b, bias));
        }
    }

    private LowRankPredictor predictor(float[] a, float[] b, float[] bias) {
        return new LowRankPredictor(a.length / x.columns(), x.columns(), bias.length, a, b, bias, null, 1,
                settings.poolRows());
    }

    private void refine() {
        int h = x.columns();
        int rank = best.rank();
        int blocks = y.columns();
        Matrix at = new Matrix(rank, h, best.a()).transpose();
        Matrix bt = new Matrix(blocks, rank, best.b()).transpose();
        float[] bias = best.bias().clone();
        for (int i = 0; i < bt.values().length; i++) {
            bt.values()[i] /= scale;
        }
        for (int k = 0; k < blocks; k++) {
            bias[k] /= scale;
        }
        Adam adamA = new Adam(at.values(), RATE * rootMeanSquare(at.values()));
        Adam adamB = new Adam(bt.values(), RATE * rootMeanSquare(bt.values()));
        Adam adamBias = new Adam(bias, RATE * rootMeanSquare(bias));
        Gradients gradients = new Gradients(at, bt, bias);
        SplittableRandom random = new SplittableRandom(settings.seed());
        gradients.drawNoise(random);
        int lists = x.rows() / settings.poolsPerList();
        int[] order = new int[lists];
        Arrays.setAll(order, i -> i);
        int steps = settings.epochs() * Math.ceilDiv(lists, LISTS_PER_STEP);
        int step = 0;
        for (int epoch = 0; epoch < settings.epochs(); epoch++) {
            Shuffle.in(order, random);
            for (int from = 0; from < lists; from += LISTS_PER_STEP) {
                int to = Math.min(lists, from + LISTS_PER_STEP);
                gradients.clear();
                for (int i = from; i < to; i++) {
                    gradients.add(order[i], random);
                }
                double rate = 0.5 * (1 + Math.cos(Math.PI * step / steps));
                step++;
                adamA.update(gradients.dAt.values(), rate, step);
                adamB.update(gradients.dBt.values(), rate, step);
                adamBias.update(gradients.dBias, rate, step);
            }
            float[] b = bt.transpose().values();
            float[] scaledBias = bias.clone();
            for (int i = 0; i < b.length; i++) {
                b[i] *= scale;
            }
            for (int k = 0; k < blocks; k++) {
                scaledBias[k] *= scale;
            }
            consider(predictor(at.transpose().values(), b, scaledBias));
        }
    }

    private static double rootMeanSquare(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += (double) value * value;
        }
        return Math.sqrt(sum / values.length);
    }

    /** Of the error's square, over some lists. */
    private final class Gradients {
        private final Matrix at;
        private final Matrix bt;
        private final float[] bias;
        private final Matrix dAt;
        private final Matrix dBt;
        private final float[] dBias;
        private final float[] noise = new float[NOISE_TABLE];
        private final float[] deviation;
        private final float[][] inputs;
        private final float[][] z;
        private final float[][] u;

        Gradients(Matrix at, Matrix bt, float[] bias) {
            this.at = at;
            this.bt = bt;
            this.bias = bias;
            dAt = Matrix.zeros(at.rows(), at.columns());
            dBt = Matrix.zeros(bt.rows(), bt.columns());
            dBias = new float[bias.length];
            int pools = settings.poolsPerList();
            inputs = new float[pools][x.columns()];
            z = new float[pools][at.columns()];
            u = new float[pools][bias.length];
            deviation = deviations();
        }

        private float[] deviations() {
            float[] means = x.columnMeans();
            double[] sums = new double[means.length];
            for (int p = 0; p < x.rows(); p++) {
                for (int j = 0; j < means.length; j++) {
                    double difference = x.get(p, j) - means[j];
                    sums[j] += difference * difference;
                }
            }
            float[] result = new float[means.length];
            for (int j = 0; j < means.length; j++) {
                result[j] = (float) (settings.noise() * Math.sqrt(sums[j] / x.rows()));
            }
            return result;
        }

        /** Drawing anew for each input would take longer than all the rest: places in this table are drawn. */
        void drawNoise(SplittableRandom random) {
            for (int i = 0; i < noise.length; i++) {
                noise[i] = (float) random.nextGaussian();
            }
        }

        void clear() {
            Arrays.fill(dAt.values(), 0);
            Arrays.fill(dBt.values(), 0);
            Arrays.fill(dBias, 0);
        }

        void add(int list, SplittableRandom random) {
            int pools = settings.poolsPerList();
            int blocks = bias.length;
            float[] error = new float[blocks];
            for (int p = 0; p < pools; p++) {
                int row = list * pools + p;
                perturbed(row, random.nextInt(NOISE_TABLE), inputs[p]);
                PredictorScores.forward(inputs[p], 0, at, bt, bias, z[p], u[p]);
                for (int k = 0; k < blocks; k++) {
                    error[k] += (Math.max(0, u[p][k]) - y.get(row, k)) / pools;
                }
            }
            float[] du = new float[blocks];
            float[] dz = new float[at.columns()];
            for (int p = 0; p < pools; p++) {
                int row = list * pools + p;
                for (int k = 0; k < blocks; k++) {
                    float own = Math.max(0, u[p][k]) - y.get(row, k);
                    // Where the ReLU is 0 and should not be, the row's own error still lifts it.
                    float pulled = u[p][k] > 0 ? error[k] + ROW_SHARE * own : Math.min(0, ROW_SHARE * own);
                    du[k] = importance[k] * pulled;
                    dBias[k] += du[k];
                }
                for (int r = 0; r < dz.length; r++) {
                    Matrix.addRow(z[p][r], du, 0, dBt.values(), r * blocks, blocks);
                    dz[r] = dot(bt.values(), r * blocks, du);
                }
                for (int j = 0; j < inputs[p].length; j++) {
                    Matrix.addRow(inputs[p][j], dz, 0, dAt.values(), j * dz.length, dz.length);
                }
            }
        }

        private void perturbed(int row, int start, float[] target) {
            int h = target.length;
            for (int j = 0; j < h; j++) {
                target[j] = x.values()[row * h + j] + deviation[j] * noise[(start + j) & (NOISE_TABLE - 1)];
            }
        }

        private static float dot(float[] left, int at, float[] right) {
            float even = 0;
            float odd = 0;
            int k = 0;
            for (; k + 1 < right.length; k += 2) {
                even += left[at + k] * right[k];
                odd += left[at + k + 1] * right[k + 1];
            }
            return k < right.length ? even + odd + left[at + k] * right[k] : even + odd;
        }
    }
}
