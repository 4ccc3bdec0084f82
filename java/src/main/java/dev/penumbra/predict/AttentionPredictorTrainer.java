package dev.penumbra.predict;

import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import java.util.function.ToDoubleFunction;

/**
 * Trains one head's {@link AttentionHeadMap}: from the maps of its rank that keep most of the products of pooled queries and
 * keys, Adam on the cross-entropy between the true parts of a query block's mass and the expected ones.
 *
 * <p>Means of queries and keys are not what a block's mass comes from: a few sharp products make it. Training makes up for
 * what the means hide. Queries and keys are perturbed meanwhile, so that scores stay right while adapters move them.
 */
public final class AttentionPredictorTrainer {

    /** Steps of a weight, as a part of the matrix's root mean square. */
    private static final double RATE = 0.02;
    private static final int SAMPLES_PER_STEP = 4;
    private static final int NOISE_TABLE = 1 << 14;
    /** Of the mean variance, added to each direction's: it keeps inverse roots finite. */
    private static final double FLOOR = 1e-3;
    private static final float LEAST = 1e-12f;

    /**
     * How to train.
     *
     * @param rank of the maps
     * @param width blocks of the longest sample that is ever predicted
     * @param epochs of Adam; 0: the first maps alone
     * @param noise standard deviation of what perturbs queries and keys, as a part of their own
     */
    public record Settings(int rank, int width, int epochs, double noise, long seed) {
    }

    private final List<PooledAttention> samples;
    private final Settings settings;
    private final ToDoubleFunction<AttentionHeadMap> judge;
    private final int headDim;
    private final float[] pq;
    private final float[] pk;
    private final float[] bq;
    private final float[] bk;
    private final float[] distance;
    private final float[] deviationQ;
    private final float[] deviationK;
    private AttentionHeadMap best;
    private double bestJudgement;

    private AttentionPredictorTrainer(List<PooledAttention> samples, Settings settings,
            ToDoubleFunction<AttentionHeadMap> judge) {
        this.samples = samples;
        this.settings = settings;
        this.judge = judge;
        headDim = samples.getFirst().headDim();
        pq = new float[settings.rank() * headDim];
        pk = new float[settings.rank() * headDim];
        bq = new float[settings.rank()];
        bk = new float[settings.rank()];
        distance = new float[settings.width()];
        Moments q = new Moments(headDim, samples.stream().map(PooledAttention::q).toList());
        Moments k = new Moments(headDim, samples.stream().map(PooledAttention::k).toList());
        deviationQ = q.deviations(settings.noise());
        deviationK = k.deviations(settings.noise());
        begin(q.secondMoments(), k.covariances());
        best = snapshot();
        bestJudgement = judge.applyAsDouble(best);
    }

    /**
     * Trains on samples and gives the maps that {@code judge} likes best of those on the way.
     *
     * @param samples of one head; one or more
     * @param judge tells how good maps are, on other text; more is better
     */
    public static AttentionHeadMap train(List<PooledAttention> samples, Settings settings,
            ToDoubleFunction<AttentionHeadMap> judge) {
        if (samples.isEmpty()) {
            throw new IllegalArgumentException("expected samples to train with, found none");
        }
        AttentionPredictorTrainer trainer = new AttentionPredictorTrainer(samples, settings, judge);
        trainer.refine();
        return trainer.best;
    }

    /** Minus the mean over query blocks of the cross-entropy between true and expected parts of their mass, in nats. */
    public static double likelihood(AttentionHeadMap map, List<PooledAttention> samples) {
        double sum = 0;
        double weights = 0;
        for (PooledAttention sample : samples) {
            float[] expected = map.masses(sample, 1);
            for (int i = 0; i < sample.blocks(); i++) {
                sum += likelihood(sample, i, expected);
                weights += sample.weight(i);
            }
        }
        return weights == 0 ? 0 : sum / weights;
    }

    /**
     * The sum over key blocks of query block {@code i}'s true mass times the logarithm of the expected part. In a method of its
     * own: with these loops inside those over samples and rows, the compiler of JDK 25.0.3 crashes.
     */
    private static double likelihood(PooledAttention sample, int i, float[] expected) {
        int n = sample.blocks();
        double total = 0;
        for (int at = i * n; at < (i + 1) * n; at++) {
            total += expected[at];
        }
        double sum = 0;
        for (int at = i * n; at < (i + 1) * n; at++) {
            sum += sample.mass()[at] == 0 ? 0 : sample.mass()[at] * Math.log(Math.max(expected[at] / total, LEAST));
        }
        return sum;
    }

    /**
     * The maps of this rank whose products come nearest to {@code q · k / sqrt(headDim)}: with the roots Rq and Rk of the
     * moments and U S Vᵀ ≈ Rq Rk, Pq = sqrt(S) Uᵀ Rq⁻¹ and Pk = sqrt(S) Vᵀ Rk⁻¹.
     */
    private void begin(double[][] momentsQ, double[][] momentsK) {
        Root q = Root.of(momentsQ);
        Root k = Root.of(momentsK);
        double[][] product = times(q.root(), k.root());
        double[][] gram = times(transposed(product), product);
        SymmetricEigen eigen = SymmetricEigen.of(gram);
        double scale = 1 / Math.sqrt(headDim);
        for (int r = 0; r < Math.min(settings.rank(), headDim); r++) {
            double singular = Math.sqrt(Math.max(eigen.values()[r], 0));
            if (singular <= Float.MIN_NORMAL) {
                break;
            }
            double[] v = eigen.vectors()[r];
            double[] u = new double[headDim];
            for (int i = 0; i < headDim; i++) {
                for (int j = 0; j < headDim; j++) {
                    u[i] += product[i][j] * v[j] / singular;
                }
            }
            double factor = Math.sqrt(singular * scale);
            for (int d = 0; d < headDim; d++) {
                double toQ = 0;
                double toK = 0;
                for (int i = 0; i < headDim; i++) {
                    toQ += u[i] * q.inverse()[i][d];
                    toK += v[i] * k.inverse()[i][d];
                }
                pq[r * headDim + d] = (float) (factor * toQ);
                pk[r * headDim + d] = (float) (factor * toK);
            }
        }
    }

    private AttentionHeadMap snapshot() {
        return new AttentionHeadMap(settings.rank(), headDim, pq.clone(), pk.clone(), bq.clone(), bk.clone(),
                distance.clone());
    }

    private void refine() {
        Gradients gradients = new Gradients();
        SplittableRandom random = new SplittableRandom(settings.seed());
        gradients.drawNoise(random);
        Adam[] adams = {
                new Adam(pq, RATE * rootMeanSquare(pq)), new Adam(pk, RATE * rootMeanSquare(pk)),
                // A score moves by about 1 where one of these does.
                new Adam(bq, RATE), new Adam(bk, RATE), new Adam(distance, RATE)};
        int[] order = new int[samples.size()];
        Arrays.setAll(order, i -> i);
        int steps = settings.epochs() * Math.ceilDiv(order.length, SAMPLES_PER_STEP);
        int step = 0;
        for (int epoch = 0; epoch < settings.epochs(); epoch++) {
            Shuffle.in(order, random);
            for (int from = 0; from < order.length; from += SAMPLES_PER_STEP) {
                gradients.clear();
                for (int i = from; i < Math.min(order.length, from + SAMPLES_PER_STEP); i++) {
                    gradients.add(samples.get(order[i]), random);
                }
                double rate = 0.5 * (1 + Math.cos(Math.PI * step / steps));
                step++;
                for (int i = 0; i < adams.length; i++) {
                    adams[i].update(gradients.all[i], rate, step);
                }
            }
            AttentionHeadMap candidate = snapshot();
            double judgement = judge.applyAsDouble(candidate);
            if (judgement > bestJudgement) {
                best = candidate;
                bestJudgement = judgement;
            }
        }
    }

    private static double rootMeanSquare(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += (double) value * value;
        }
        return Math.max(Math.sqrt(sum / values.length), 1e-4);
    }

    private static double[][] times(double[][] left, double[][] right) {
        double[][] result = new double[left.length][right[0].length];
        for (int i = 0; i < left.length; i++) {
            for (int k = 0; k < right.length; k++) {
                for (int j = 0; j < right[k].length; j++) {
                    result[i][j] += left[i][k] * right[k][j];
                }
            }
        }
        return result;
    }

    private static double[][] transposed(double[][] matrix) {
        double[][] result = new double[matrix[0].length][matrix.length];
        for (int i = 0; i < matrix.length; i++) {
            for (int j = 0; j < matrix[i].length; j++) {
                result[j][i] = matrix[i][j];
            }
        }
        return result;
    }

    /** The symmetric root of moments, and its inverse. */
    private record Root(double[][] root, double[][] inverse) {

        static Root of(double[][] moments) {
            int n = moments.length;
            double mean = 0;
            for (int i = 0; i < n; i++) {
                mean += moments[i][i] / n;
            }
            SymmetricEigen eigen = SymmetricEigen.of(moments);
            double[][] root = new double[n][n];
            double[][] inverse = new double[n][n];
            for (int e = 0; e < n; e++) {
                double value = Math.sqrt(Math.max(eigen.values()[e], 0) + FLOOR * mean + Float.MIN_NORMAL);
                double[] vector = eigen.vectors()[e];
                for (int i = 0; i < n; i++) {
                    for (int j = 0; j < n; j++) {
                        root[i][j] += value * vector[i] * vector[j];
                        inverse[i][j] += vector[i] * vector[j] / value;
                    }
                }
            }
            return new Root(root, inverse);
        }
    }

    /** First and second moments of pooled rows. */
    private static final class Moments {
        private final int n;
        private final double[] mean;
        private final double[][] second;

        Moments(int n, List<float[]> parts) {
            this.n = n;
            mean = new double[n];
            second = new double[n][n];
            long rows = 0;
            for (float[] part : parts) {
                for (int at = 0; at < part.length; at += n) {
                    for (int i = 0; i < n; i++) {
                        double value = part[at + i];
                        mean[i] += value;
                        for (int j = 0; j <= i; j++) {
                            second[i][j] += value * part[at + j];
                        }
                    }
                    rows++;
                }
            }
            for (int i = 0; i < n; i++) {
                mean[i] /= rows;
                for (int j = 0; j <= i; j++) {
                    second[i][j] /= rows;
                    second[j][i] = second[i][j];
                }
            }
        }

        double[][] secondMoments() {
            return second;
        }

        /** A softmax over keys does not see their mean. */
        double[][] covariances() {
            double[][] result = new double[n][n];
            for (int i = 0; i < n; i++) {
                for (int j = 0; j < n; j++) {
                    result[i][j] = second[i][j] - mean[i] * mean[j];
                }
            }
            return result;
        }

        float[] deviations(double factor) {
            float[] result = new float[n];
            for (int i = 0; i < n; i++) {
                result[i] = (float) (factor * Math.sqrt(Math.max(0, second[i][i] - mean[i] * mean[i])));
            }
            return result;
        }
    }

    /** Of the cross-entropy's sum over some samples' query blocks, each weighed by the pooled rows that it has. */
    private final class Gradients {
        private final float[] dPq = new float[pq.length];
        private final float[] dPk = new float[pk.length];
        private final float[] dBq = new float[bq.length];
        private final float[] dBk = new float[bk.length];
        private final float[] dDistance = new float[distance.length];
        private final float[][] all = {dPq, dPk, dBq, dBk, dDistance};
        private final float[] noise = new float[NOISE_TABLE];

        /** Drawing anew for each input would take longer than all the rest: places in this table are drawn. */
        void drawNoise(SplittableRandom random) {
            for (int i = 0; i < noise.length; i++) {
                noise[i] = (float) random.nextGaussian();
            }
        }

        void clear() {
            for (float[] gradient : all) {
                Arrays.fill(gradient, 0);
            }
        }

        private float[] perturbed(float[] x, float[] deviation, SplittableRandom random) {
            float[] result = new float[x.length];
            for (int at = 0; at < x.length; at += headDim) {
                int start = random.nextInt(NOISE_TABLE);
                for (int d = 0; d < headDim; d++) {
                    result[at + d] = x[at + d] + deviation[d] * noise[(start + d) & (NOISE_TABLE - 1)];
                }
            }
            return result;
        }

        private static float[] transposed(float[] x, int rows, int columns) {
            float[] result = new float[x.length];
            for (int i = 0; i < rows; i++) {
                for (int j = 0; j < columns; j++) {
                    result[j * rows + i] = x[i * columns + j];
                }
            }
            return result;
        }

        void add(PooledAttention sample, SplittableRandom random) {
            int rank = settings.rank();
            int pools = sample.pools();
            int[] blockOf = sample.blockOf();
            float[] q = perturbed(sample.q(), deviationQ, random);
            float[] k = perturbed(sample.k(), deviationK, random);
            float[] zq = new float[rank * pools];
            float[] zk = new float[rank * pools];
            AttentionHeadMap.project(pq, bq, transposed(q, pools, headDim), zq, rank, headDim, pools);
            AttentionHeadMap.project(pk, bk, transposed(k, pools, headDim), zk, rank, headDim, pools);
            // [pools, pools]: first the parts of each row's mass, then the scores' gradients.
            float[] e = new float[pools * pools];
            for (int g = 0; g < pools; g++) {
                AttentionHeadMap.softmax(zq, zk, rank, g, pools, blockOf, distance, e, g * pools);
            }
            for (int from = 0; from < pools;) {
                int to = from;
                while (to < pools && blockOf[to] == blockOf[from]) {
                    to++;
                }
                scoreGradients(sample, e, from, to);
                from = to;
            }
            float[] dzq = new float[rank * pools];
            float[] dzk = new float[rank * pools];
            float[] columns = transposed(e, pools, pools);
            for (int g = 0; g < pools; g++) {
                for (int r = 0; r < rank; r++) {
                    Matrix.addRow(zq[r * pools + g], e, g * pools, dzk, r * pools, g + 1);
                    Matrix.addRow(zk[r * pools + g], columns, g * pools + g, dzq, r * pools + g, pools - g);
                }
                for (int other = 0; other <= g; other++) {
                    dDistance[blockOf[g] - blockOf[other]] += e[g * pools + other];
                }
            }
            for (int r = 0; r < rank; r++) {
                for (int g = 0; g < pools; g++) {
                    Matrix.addRow(dzq[r * pools + g], q, g * headDim, dPq, r * headDim, headDim);
                    Matrix.addRow(dzk[r * pools + g], k, g * headDim, dPk, r * headDim, headDim);
                    dBq[r] += dzq[r * pools + g];
                    dBk[r] += dzk[r * pools + g];
                }
            }
        }

        /** Of the rows of one query block, whose mean parts are compared with the true ones. */
        private void scoreGradients(PooledAttention sample, float[] e, int from, int to) {
            int pools = sample.pools();
            int[] blockOf = sample.blockOf();
            int block = blockOf[from];
            float[] expected = new float[block + 1];
            for (int g = from; g < to; g++) {
                for (int other = 0; other <= g; other++) {
                    expected[blockOf[other]] += e[g * pools + other] / (to - from);
                }
            }
            // What a row's softmax should have more of: the true part over the expected one, key block by key block.
            float[] ratio = new float[block + 1];
            for (int j = 0; j <= block; j++) {
                ratio[j] = sample.part(block, j) / Math.max(expected[j], LEAST);
            }
            for (int g = from; g < to; g++) {
                float mean = 0;
                for (int other = 0; other <= g; other++) {
                    mean += e[g * pools + other] * ratio[blockOf[other]];
                }
                for (int other = 0; other <= g; other++) {
                    e[g * pools + other] *= mean - ratio[blockOf[other]];
                }
            }
        }
    }
}
