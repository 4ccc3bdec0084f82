package dev.penumbra.expose;

import dev.penumbra.expose.Calibrator.OrderChoice;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.Matrix;
import dev.penumbra.predict.PredictorScores;
import dev.penumbra.sparse.NeuronOrder;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;

/** Measures a layer's order and predictors on held-out text. */
final class LayerFigures {

    private static final double[] COVERAGES = {0.9, 0.95, 0.99, 0.999};
    private static final double[] KEPT = {0.125, 0.25, 0.5, 0.75};
    /** The seed paper's blocks, and its rule: a block goes when 90 % of its neurons lie below 5 % of its largest. */
    private static final int SEED_BLOCK = 128;
    private static final double SEED_THRESHOLD = 0.05;
    private static final double SEED_SHARE = 0.9;

    private final CalibrationConfig config;
    private final OrderChoice choice;
    private final NeuronUse made;
    private final NeuronUse held;
    private final LowRankPredictor predictor;
    private final LowRankPredictor lowRank;
    private final int blocks;

    LayerFigures(CalibrationConfig config, OrderChoice choice, NeuronUse made, NeuronUse held, LowRankPredictor predictor,
            LowRankPredictor lowRank) {
        this.config = config;
        this.choice = choice;
        this.made = made;
        this.held = held;
        this.predictor = predictor;
        LowRankPredictor p = lowRank;
        this.lowRank = new LowRankPredictor(p.rank(), p.hidden(), p.units(), p.a(), p.b(), p.bias(), p.norms(),
                config.blockSize(), p.poolRows());
        blocks = choice.order().neurons() / config.blockSize();
    }

    /** What predictors are judged by on the way: the coverage at the budget, list by list. */
    static final class Judge {
        private final Matrix inputs;
        private final int poolsPerList;
        private final BlockMasses truth;
        private final int kept;

        Judge(PooledUse held, CalibrationConfig config) {
            inputs = held.inputs();
            poolsPerList = held.poolsPerList();
            truth = held.byList();
            kept = config.kept(truth.blocks());
        }

        double covered(LowRankPredictor candidate) {
            return truth.covered(new BlockMasses(PredictorScores.of(candidate, inputs, poolsPerList)), kept);
        }
    }

    Manifest.Layer of(PooledUse plain, PooledUse drifted) {
        NeuronOrder order = choice.order();
        BlockMasses lists = BlockMasses.of(held.masses(), order, config.blockSize());
        float[] mean = lists.curve(0).mean();
        Map<String, Double> blocksFor = new TreeMap<>();
        for (double coverage : COVERAGES) {
            blocksFor.put(key(coverage), (double) BlockMasses.needed(mean, coverage) / blocks);
        }
        Map<String, Double> coverageAt = new TreeMap<>();
        for (double kept : KEPT) {
            coverageAt.put(key(kept), lists.oracle(Math.max(1, (int) Math.round(kept * blocks))));
        }
        float[] fired = held.meanFired();
        double firing = 0;
        double silent = 0;
        for (float part : fired) {
            firing += part / fired.length;
            silent += part == 0 ? 1.0 / fired.length : 0;
        }
        return new Manifest.Layer(choice.name(), blocksFor.get(key(nearest(config.coverage()))) > Calibration.DENSE_FROM,
                firing,
                silent, neuronsFor(), choice.tried(), blocksFor, coverageAt, coverage(plain, false), coverage(plain, true),
                coverage(drifted, false));
    }

    private static double nearest(double coverage) {
        return Arrays.stream(COVERAGES).boxed()
                .min((a, b) -> Double.compare(Math.abs(a - coverage), Math.abs(b - coverage))).orElseThrow();
    }

    private static String key(double value) {
        return String.format(Locale.ROOT, value * 100 == Math.rint(value * 100) ? "%.2f" : "%.3f", value);
    }

    private Map<String, Double> neuronsFor() {
        float[] sorted = held.meanMass();
        Arrays.sort(sorted);
        double total = 0;
        for (float mass : sorted) {
            total += mass;
        }
        Map<String, Double> result = new TreeMap<>();
        for (double coverage : COVERAGES) {
            double sum = 0;
            int count = 0;
            while (count < sorted.length && sum < coverage * total) {
                sum += sorted[sorted.length - ++count];
            }
            result.put(key(coverage), (double) count / sorted.length);
        }
        return result;
    }

    /** @param merged one list for a whole batch, instead of each by itself */
    private Manifest.Coverage coverage(PooledUse use, boolean merged) {
        int kept = config.kept(blocks);
        BlockMasses truth = scoped(use.byList(), use, merged);
        Matrix inputs = use.inputs();
        BlockMasses predicted = new BlockMasses(PredictorScores.of(predictor, inputs, use.poolsPerList()));
        BlockMasses approximated = new BlockMasses(PredictorScores.of(lowRank, inputs, use.poolsPerList()));
        float[] fixed = BlockMasses.of(List.of(made.meanMass()), choice.order(), config.blockSize()).mean();
        return new Manifest.Coverage(
                truth.oracle(kept),
                truth.covered(scoped(predicted, use, merged), kept),
                truth.covered(fixed, kept),
                // What a choice by lot covers on the average.
                (double) kept / blocks,
                seedRule(),
                truth.covered(scoped(approximated, use, merged), kept));
    }

    private static BlockMasses scoped(BlockMasses lists, PooledUse use, boolean merged) {
        return merged ? lists.merged(use.batchOf()) : lists;
    }

    /**
     * The seed paper's way: one list for a batch, neurons in the checkpoint's order, a block's sum or nothing by its rule, at
     * the same budget.
     */
    private double seedRule() {
        int neurons = made.neurons();
        int size = neurons % SEED_BLOCK == 0 ? SEED_BLOCK : config.blockSize();
        int[] batchOf = held.batchOf();
        double covered = 0;
        double total = 0;
        for (int group = 0; group < batchOf.length;) {
            float[] sum = new float[neurons];
            int batch = batchOf[group];
            for (; group < batchOf.length && batchOf[group] == batch; group++) {
                for (int j = 0; j < neurons; j++) {
                    sum[j] += held.masses().get(group)[j];
                }
            }
            double[] scores = new double[neurons / size];
            for (int b = 0; b < scores.length; b++) {
                double largest = 0;
                double block = 0;
                for (int j = b * size; j < (b + 1) * size; j++) {
                    largest = Math.max(largest, sum[j]);
                    block += sum[j];
                }
                int small = 0;
                for (int j = b * size; j < (b + 1) * size; j++) {
                    small += sum[j] < SEED_THRESHOLD * largest ? 1 : 0;
                }
                scores[b] = small >= SEED_SHARE * size ? 0 : block;
                total += block;
            }
            Arrays.sort(scores);
            int kept = config.kept(scores.length);
            for (int b = 0; b < kept; b++) {
                covered += scores[scores.length - 1 - b];
            }
        }
        return total == 0 ? 1 : covered / total;
    }
}
