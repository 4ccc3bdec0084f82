package dev.penumbra.expose;

import dev.penumbra.sparse.BlockPattern;
import dev.penumbra.sparse.PatternPool;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;

/**
 * Finds what layouts a model's heads share: the heads' mean masses are gathered into clusters of like ones (k-means over the
 * roots of their parts, Hellinger's distance), and each cluster's heaviest blocks at the budget are a pattern.
 */
final class PatternFinder {

    private static final int MOST_FOUND = 8;
    private static final int ITERATIONS = 20;
    /** Entries of a head's layout: more would hardly be one. */
    private static final int MOST_ENTRIES = 8;

    private PatternFinder() {
    }

    /**
     * The known patterns, and behind them those that are found.
     *
     * @param tables one a head of any layer: [width, width]
     */
    static PatternPool pool(List<float[]> tables, int width, double budget, long seed) {
        PatternPool known = PatternPool.atomic(width);
        if (AttentionChoice.most(width, budget) == AttentionChoice.always(width)) {
            return known;
        }
        List<double[]> points = new ArrayList<>();
        for (float[] table : tables) {
            double[] point = point(table, width);
            if (point != null) {
                points.add(point);
            }
        }
        List<BlockPattern> found = new ArrayList<>();
        for (double[] centre : points.isEmpty() ? List.<double[]>of() : centres(points, seed)) {
            float[] scores = new float[width * width];
            for (int at = 0; at < scores.length; at++) {
                scores[at] = (float) (centre[at] * centre[at]);
            }
            boolean[] kept = AttentionChoice.choose(scores, width, 1, budget);
            BlockPattern pattern = BlockPattern.of("found-" + (found.size() + 1), width, (i, j) -> kept[i * width + j]);
            if (found.stream().noneMatch(other -> other.mask(width).equals(pattern.mask(width)))) {
                found.add(pattern);
            }
        }
        return known.with(found);
    }

    /** Roots of the parts of what the always kept blocks leave; null where they leave nothing. */
    private static double[] point(float[] table, int width) {
        double[] point = new double[width * width];
        double total = 0;
        for (int i = 0; i < width; i++) {
            for (int j = 1; j < i; j++) {
                total += table[i * width + j];
            }
        }
        if (total <= 0) {
            return null;
        }
        for (int i = 0; i < width; i++) {
            for (int j = 1; j < i; j++) {
                point[i * width + j] = Math.sqrt(table[i * width + j] / total);
            }
        }
        return point;
    }

    private static List<double[]> centres(List<double[]> points, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        List<double[]> centres = new ArrayList<>();
        centres.add(points.get(random.nextInt(points.size())).clone());
        while (centres.size() < Math.min(MOST_FOUND, points.size())) {
            double[] farness = points.stream().mapToDouble(p -> distance(p, centres.get(nearest(p, centres)))).toArray();
            double at = random.nextDouble() * Arrays.stream(farness).sum();
            int chosen = 0;
            while (chosen < farness.length - 1 && at >= farness[chosen]) {
                at -= farness[chosen++];
            }
            if (farness[chosen] == 0) {
                break;
            }
            centres.add(points.get(chosen).clone());
        }
        for (int iteration = 0; iteration < ITERATIONS; iteration++) {
            double[][] sums = new double[centres.size()][points.getFirst().length];
            int[] counts = new int[centres.size()];
            for (double[] p : points) {
                int centre = nearest(p, centres);
                counts[centre]++;
                for (int i = 0; i < p.length; i++) {
                    sums[centre][i] += p[i];
                }
            }
            for (int c = 0; c < counts.length; c++) {
                for (int i = 0; i < sums[c].length && counts[c] > 0; i++) {
                    centres.get(c)[i] = sums[c][i] / counts[c];
                }
            }
        }
        return centres;
    }

    private static int nearest(double[] point, List<double[]> centres) {
        int best = 0;
        for (int c = 1; c < centres.size(); c++) {
            if (distance(point, centres.get(c)) < distance(point, centres.get(best))) {
                best = c;
            }
        }
        return best;
    }

    private static double distance(double[] a, double[] b) {
        double sum = 0;
        for (int i = 0; i < a.length; i++) {
            sum += (a[i] - b[i]) * (a[i] - b[i]);
        }
        return sum;
    }

    /**
     * The pool's entries whose union is a head's layout: one after another the one that adds the most mass for each block that
     * it adds, as long as the budget has room for it.
     *
     * @param table [width, width]
     */
    static int[] layout(PatternPool pool, float[] table, double budget) {
        int width = pool.width();
        int room = AttentionChoice.most(width, budget);
        List<Integer> entries = new ArrayList<>();
        BlockPattern layout = pool.union();
        while (entries.size() < MOST_ENTRIES) {
            int best = -1;
            double bestGain = 0;
            for (int entry = 0; entry < pool.patterns().size(); entry++) {
                BlockPattern pattern = pool.patterns().get(entry);
                double mass = 0;
                int blocks = 0;
                for (int i = 0; i < width; i++) {
                    for (int j = 1; j < i; j++) {
                        if (pattern.keeps(i, j) && !layout.keeps(i, j)) {
                            mass += table[i * width + j];
                            blocks++;
                        }
                    }
                }
                if (blocks > 0 && layout.count(width) + blocks <= room && mass / blocks > bestGain) {
                    best = entry;
                    bestGain = mass / blocks;
                }
            }
            if (best < 0) {
                break;
            }
            entries.add(best);
            layout = layout.union(pool.patterns().get(best));
        }
        return entries.stream().mapToInt(Integer::intValue).toArray();
    }
}
