package dev.penumbra.predict;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;

/** Predictors of a layer whose blocks are used by topics, of which each list of tokens has one or two. */
class PredictorTrainerTest {

    private static final int HIDDEN = 24;
    private static final int BLOCKS = 20;
    private static final int TOPICS = 5;
    private static final int POOLS = 4;
    private static final int KEPT = 6;
    private static final long SEED = 11;

    private record Data(Matrix x, Matrix y) {
    }

    private static Data draw(int lists, Random random) {
        Random fixed = new Random(SEED);
        double[][] topicInput = gaussian(TOPICS, HIDDEN, fixed);
        double[][] topicUse = gaussian(TOPICS, BLOCKS, fixed);
        Matrix x = Matrix.zeros(lists * POOLS, HIDDEN);
        Matrix y = Matrix.zeros(lists * POOLS, BLOCKS);
        for (int list = 0; list < lists; list++) {
            int topic = random.nextInt(TOPICS);
            for (int p = list * POOLS; p < (list + 1) * POOLS; p++) {
                double strength = 0.5 + random.nextDouble();
                for (int j = 0; j < HIDDEN; j++) {
                    x.set(p, j, (float) (strength * topicInput[topic][j] + 0.3 * random.nextGaussian()));
                }
                for (int b = 0; b < BLOCKS; b++) {
                    y.set(p, b, (float) Math.max(0.02, strength * topicUse[topic][b] + 0.05 * random.nextGaussian()));
                }
            }
        }
        return new Data(x, y);
    }

    private static double[][] gaussian(int rows, int columns, Random random) {
        double[][] values = new double[rows][columns];
        for (double[] row : values) {
            Arrays.setAll(row, i -> random.nextGaussian());
        }
        return values;
    }

    /** The part of the mass in each list's {@code KEPT} blocks of the highest scores. */
    private static double covered(Matrix y, Matrix scores) {
        double covered = 0;
        double all = 0;
        for (int list = 0; list < scores.rows(); list++) {
            float[] mass = new float[BLOCKS];
            Integer[] order = new Integer[BLOCKS];
            for (int b = 0; b < BLOCKS; b++) {
                order[b] = b;
                for (int p = list * POOLS; p < (list + 1) * POOLS; p++) {
                    mass[b] += y.get(p, b);
                }
                all += mass[b];
            }
            int row = list;
            Arrays.sort(order, (i, j) -> Float.compare(scores.get(row, j), scores.get(row, i)));
            for (int k = 0; k < KEPT; k++) {
                covered += mass[order[k]];
            }
        }
        return covered / all;
    }

    private static Matrix sums(Matrix y) {
        Matrix sums = Matrix.zeros(y.rows() / POOLS, BLOCKS);
        for (int p = 0; p < y.rows(); p++) {
            Matrix.addRow(1, y.values(), p * BLOCKS, sums.values(), p / POOLS * BLOCKS, BLOCKS);
        }
        return sums;
    }

    private static Matrix repeated(float[] scores, int lists) {
        Matrix all = Matrix.zeros(lists, BLOCKS);
        for (int list = 0; list < lists; list++) {
            System.arraycopy(scores, 0, all.values(), list * BLOCKS, BLOCKS);
        }
        return all;
    }

    private static PredictorTrainer.Settings settings(int epochs) {
        return new PredictorTrainer.Settings(8, 16, POOLS, epochs, 0.05, SEED);
    }

    @Test
    void predictedBlocksCoverNearlyAsMuchAsTheBestAndMoreThanStaticOrRandomOnes() {
        Random random = new Random(SEED);
        Data made = draw(150, random);
        Data judged = draw(40, random);
        Data held = draw(40, random);
        LowRankPredictor predictor = PredictorTrainer.train(made.x(), made.y(), settings(4),
                p -> covered(judged.y(), PredictorScores.of(p, judged.x(), POOLS)));
        double predicted = covered(held.y(), PredictorScores.of(predictor, held.x(), POOLS));
        double oracle = covered(held.y(), sums(held.y()));
        double fixed = covered(held.y(), repeated(made.y().columnMeans(), 40));
        assertThat(predicted).as("predicted, oracle %.3f, static %.3f, seed %d", oracle, fixed, SEED)
                .isGreaterThan(0.95 * oracle)
                .isGreaterThan(fixed + 0.1)
                .isGreaterThan((double) KEPT / BLOCKS + 0.3);
    }

    @Test
    void scoresAreMassesInSize() {
        Random random = new Random(SEED);
        Data made = draw(150, random);
        LowRankPredictor predictor = PredictorTrainer.train(made.x(), made.y(), settings(2),
                p -> covered(made.y(), PredictorScores.of(p, made.x(), POOLS)));
        double expected = 0;
        for (float mass : made.y().values()) {
            expected += mass;
        }
        double found = 0;
        for (float score : PredictorScores.of(predictor, made.x(), POOLS).values()) {
            found += score;
        }
        assertThat(found / expected).as("sum of scores beside the sum of masses, seed %d", SEED).isBetween(0.9, 1.1);
    }

    @Test
    void refiningIsKeptOnlyWhereItIsBetter() {
        Random random = new Random(SEED);
        Data made = draw(60, random);
        Data judged = draw(30, random);
        double closed = covered(judged.y(), PredictorScores.of(PredictorTrainer.train(made.x(), made.y(), settings(0),
                p -> covered(judged.y(), PredictorScores.of(p, judged.x(), POOLS))), judged.x(), POOLS));
        double refined = covered(judged.y(), PredictorScores.of(PredictorTrainer.train(made.x(), made.y(), settings(6),
                p -> covered(judged.y(), PredictorScores.of(p, judged.x(), POOLS))), judged.x(), POOLS));
        assertThat(refined).as("seed %d", SEED).isGreaterThanOrEqualTo(closed);
    }

    /** Trained models have layers of which most neurons never fire. */
    @Test
    void mostBlocksMayBeDead() {
        Random random = new Random(SEED);
        Data made = draw(150, random);
        Data held = draw(40, random);
        for (Matrix y : new Matrix[]{made.y(), held.y()}) {
            for (int p = 0; p < y.rows(); p++) {
                for (int b = KEPT + 2; b < BLOCKS; b++) {
                    y.set(p, b, 0);
                }
            }
        }
        LowRankPredictor predictor = PredictorTrainer.train(made.x(), made.y(), settings(4),
                p -> covered(made.y(), PredictorScores.of(p, made.x(), POOLS)));
        for (float[] values : new float[][]{predictor.a(), predictor.b(), predictor.bias()}) {
            for (float value : values) {
                assertThat(value).isFinite();
            }
        }
        assertThat(covered(held.y(), PredictorScores.of(predictor, held.x(), POOLS)))
                .isGreaterThan(0.97 * covered(held.y(), sums(held.y())));
    }

    @Test
    void lessThanAListIsRefused() {
        assertThatThrownBy(
                () -> PredictorTrainer.train(Matrix.zeros(3, HIDDEN), Matrix.zeros(3, BLOCKS), settings(0), p -> 0))
                .isInstanceOf(IllegalArgumentException.class).hasMessageContaining("a list of 4 or more, found 3 and 3");
    }
}
