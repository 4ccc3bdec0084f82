package dev.penumbra.expose;

import dev.penumbra.predict.Matrix;
import dev.penumbra.sparse.NeuronOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * What blocks of neurons weigh in each of many lists, and how much of it a choice of blocks covers. A part is taken over all
 * lists together: a heavy list counts more than a light one.
 *
 * @param values [lists, blocks]
 */
record BlockMasses(Matrix values) {

    int lists() {
        return values.rows();
    }

    int blocks() {
        return values.columns();
    }

    /**
     * Adds up neurons to blocks.
     *
     * @param neurons one array a list, [neurons] in their original places
     */
    static BlockMasses of(List<float[]> neurons, NeuronOrder order, int blockSize) {
        int blocks = order.neurons() / blockSize;
        Matrix values = Matrix.zeros(neurons.size(), blocks);
        int[] places = order.toArray();
        for (int l = 0; l < neurons.size(); l++) {
            float[] of = neurons.get(l);
            for (int b = 0; b < blocks; b++) {
                float sum = 0;
                for (int j = b * blockSize; j < (b + 1) * blockSize; j++) {
                    sum += of[places[j]];
                }
                values.set(l, b, sum);
            }
        }
        return new BlockMasses(values);
    }

    /** Lists that belong together are added up; {@code group} ascends. */
    BlockMasses merged(int[] group) {
        List<float[]> sums = new ArrayList<>();
        for (int l = 0; l < lists(); l++) {
            if (l == 0 || group[l] != group[l - 1]) {
                sums.add(new float[blocks()]);
            }
            float[] sum = sums.getLast();
            for (int b = 0; b < sum.length; b++) {
                sum[b] += values.get(l, b);
            }
        }
        Matrix merged = Matrix.zeros(sums.size(), blocks());
        for (int l = 0; l < sums.size(); l++) {
            System.arraycopy(sums.get(l), 0, merged.values(), l * blocks(), blocks());
        }
        return new BlockMasses(merged);
    }

    /** Blocks of {@code factor} neighbours each. */
    BlockMasses coarser(int factor) {
        Matrix sums = Matrix.zeros(lists(), blocks() / factor);
        for (int l = 0; l < lists(); l++) {
            for (int b = 0; b < sums.columns() * factor; b++) {
                sums.values()[l * sums.columns() + b / factor] += values.get(l, b);
            }
        }
        return new BlockMasses(sums);
    }

    /** The blocks' means over the lists. */
    float[] mean() {
        return values.columnMeans();
    }

    private float[] row(int list) {
        return Arrays.copyOfRange(values.values(), list * blocks(), (list + 1) * blocks());
    }

    /** The part of the mass in the {@code kept} heaviest blocks of each list. */
    double oracle(int kept) {
        double covered = 0;
        double total = 0;
        for (int l = 0; l < lists(); l++) {
            float[] sorted = row(l);
            Arrays.sort(sorted);
            for (int b = 0; b < sorted.length; b++) {
                total += sorted[b];
                covered += b >= sorted.length - kept ? sorted[b] : 0;
            }
        }
        return total == 0 ? 1 : covered / total;
    }

    /** The part of the mass in the {@code kept} blocks of the highest scores, list by list. */
    double covered(BlockMasses scores, int kept) {
        double covered = 0;
        double total = 0;
        for (int l = 0; l < lists(); l++) {
            float[] mass = row(l);
            for (int block : scores.highest(l, kept)) {
                covered += mass[block];
            }
            for (float m : mass) {
                total += m;
            }
        }
        return total == 0 ? 1 : covered / total;
    }

    /** As above, with the same scores for every list. */
    double covered(float[] scores, int kept) {
        Matrix repeated = Matrix.zeros(lists(), blocks());
        for (int l = 0; l < lists(); l++) {
            System.arraycopy(scores, 0, repeated.values(), l * blocks(), blocks());
        }
        return covered(new BlockMasses(repeated), kept);
    }

    /** The blocks of a list's highest values, the lower index first of equal ones. */
    private int[] highest(int list, int count) {
        float[] of = row(list);
        return IntStream.range(0, of.length).boxed()
                .sorted((i, j) -> Float.compare(of[j], of[i]))
                .limit(count).mapToInt(Integer::intValue).toArray();
    }

    /**
     * The part of its mass that a list covers with its k + 1 heaviest blocks.
     *
     * @param mean [blocks]: over all lists
     * @param low [blocks]: at least so much in all but a few lists
     */
    @SuppressWarnings("ArrayRecordComponent")
    record Curve(float[] mean, float[] low) {
    }

    /** @param fewest the part of the lists that may cover less than {@link Curve#low} */
    Curve curve(double fewest) {
        float[] mean = new float[blocks()];
        float[] low = new float[blocks()];
        float[][] byList = new float[lists()][blocks()];
        double[] covered = new double[blocks()];
        double total = 0;
        for (int l = 0; l < lists(); l++) {
            float[] sorted = row(l);
            Arrays.sort(sorted);
            double sum = 0;
            for (float m : sorted) {
                sum += m;
            }
            double reached = 0;
            for (int k = 0; k < sorted.length; k++) {
                reached += sorted[sorted.length - 1 - k];
                covered[k] += reached;
                byList[l][k] = sum == 0 ? 1 : (float) Math.min(1, reached / sum);
            }
            total += sum;
        }
        int skipped = (int) (fewest * lists());
        float[] column = new float[lists()];
        for (int k = 0; k < blocks(); k++) {
            for (int l = 0; l < lists(); l++) {
                column[l] = byList[l][k];
            }
            Arrays.sort(column);
            low[k] = column[Math.min(skipped, lists() - 1)];
            mean[k] = total == 0 ? 1 : (float) Math.min(1, covered[k] / total);
        }
        // Rounding must not make a full list miss anything.
        mean[blocks() - 1] = 1;
        low[blocks() - 1] = 1;
        return new Curve(mean, low);
    }

    /** The fewest blocks with which a curve reaches {@code coverage}. */
    static int needed(float[] curve, double coverage) {
        for (int k = 0; k < curve.length; k++) {
            if (curve[k] >= coverage - 1e-6) {
                return k + 1;
            }
        }
        return curve.length;
    }
}
