package dev.penumbra.expose;

import dev.penumbra.internal.Counted;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.predict.AttentionHeadMap;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.AttentionPredictorTrainer;
import dev.penumbra.predict.PooledAttention;
import dev.penumbra.sparse.BlockPattern;
import dev.penumbra.sparse.PatternPool;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** Makes a calibration's part on attention of what was taken down over sample text. */
final class AttentionCalibrator {

    private static final double[] REPORTED = {0.9, 0.95, 0.99};
    /** One twentieth of the text may need more blocks than {@link AttentionCalibration#keptAt} tells. */
    private static final double FEWEST = 0.05;
    /** Among maps whose choices hold the same, the likelier is the better. */
    private static final double LIKELIHOOD_SHARE = 1e-3;

    private final LanguageModel model;
    private final ModelFolder folder;
    private final CalibrationConfig config;
    private final CalibrationConfig.Attention attention;
    private final int heads;
    private final int width;
    private final AttentionUse made;
    private final AttentionUse held;
    private final AttentionUse drifted;

    /**
     * @param heads of a layer
     * @param drifted the held-out text again, under random adapters: the same samples
     */
    AttentionCalibrator(LanguageModel model, ModelFolder folder, CalibrationConfig config, int heads, AttentionUse made,
            AttentionUse held, AttentionUse drifted) {
        this.model = model;
        this.folder = folder;
        this.config = config;
        attention = config.attention();
        this.heads = heads;
        width = Math.ceilDiv(config.seqLen(), attention.blockSize());
        this.made = made;
        this.held = held;
        this.drifted = drifted;
    }

    AttentionCalibration run(Consumer<String> progress) throws IOException {
        List<MassTables> tables = IntStream.range(0, made.layers()).parallel()
                .mapToObj(l -> MassTables.of(made, l, heads, width, every(made))).toList();
        List<float[]> means = tables.stream()
                .flatMap(t -> IntStream.range(0, heads).mapToObj(h -> t.mean(h, width))).toList();
        PatternPool pool = PatternFinder.pool(means, width, attention.budget(), config.seed());
        progress.accept("training attention predictors of rank " + attention.rank() + " for "
                + Counted.of(made.layers() * heads, "head")
                + " on " + Counted.of(made.shapes().size(), "sample"));
        List<AttentionCalibration.Layer> layers = new ArrayList<>();
        List<Manifest.AttentionLayer> figures = new ArrayList<>();
        for (int l = 0; l < made.layers(); l++) {
            layer(l, tables.get(l), pool, layers, figures);
        }
        int longest = Math.max(longest(made), longest(held));
        return new AttentionCalibration(
                new Manifest.Attention(attention.blockSize(), width, heads, attention.poolRows(), attention.rank(),
                        attention.budget(), made.shapes().size(), held.shapes().size(), longest, pool.version(),
                        pool.patterns().stream().map(BlockPattern::name).toList(),
                        Arrays.stream(REPORTED).boxed().toList(), figures),
                pool, layers, "unwritten");
    }

    private static int[] every(AttentionUse use) {
        return IntStream.range(0, use.shapes().size()).toArray();
    }

    private static int longest(AttentionUse use) {
        return use.shapes().stream().mapToInt(AttentionUse.Shape::blocks).max().orElse(0);
    }

    /** What is found out about one head. */
    @SuppressWarnings("ArrayRecordComponent")
    private record Head(@Nullable AttentionHeadMap map, int[] layout, float[] needed, Manifest.AttentionHead figures,
            AttentionCoverageSum plain, AttentionCoverageSum drifted) {
    }

    private void layer(int l, MassTables tables, PatternPool pool, List<AttentionCalibration.Layer> layers,
            List<Manifest.AttentionLayer> figures) throws IOException {
        HeadProjections weights = made.isPooled(l) ? HeadProjections.read(model, folder, l) : null;
        float[] ofMade = projected(weights, made, l);
        float[] ofHeld = projected(weights, held, l);
        float[] ofDrifted = projected(weights, drifted, l);
        // Half of the held-out text judges on the way, the other half is what figures are measured on.
        MassTables judging = MassTables.of(held, l, heads, width, held.half(0));
        List<Head> results = IntStream.range(0, heads).parallel().mapToObj(h -> {
            AttentionHeadMap map = weights == null
                    ? null
                    : train(made.head(l, h, heads, ofMade),
                            List.of(part(held.head(l, h, heads, ofHeld), held.half(0)),
                                    part(drifted.head(l, h, heads, ofDrifted), drifted.half(0))),
                            config.seed() + l * heads + h);
            int[] layout = PatternFinder.layout(pool, judging.mean(h, width), attention.budget());
            float[] table = tables.mean(h, width);
            BlockPattern union = pool.union(layout);
            AttentionCoverageSum onPlain = cover(held, l, h, ofHeld, map, table, union);
            AttentionCoverageSum onDrifted = cover(drifted, l, h, ofDrifted, map, table, union);
            return new Head(map, layout, needed(l, h), figures(l, h, layout, pool, onPlain, onDrifted), onPlain,
                    onDrifted);
        }).toList();
        AttentionCoverageSum plain = new AttentionCoverageSum(attention.budget());
        AttentionCoverageSum moved = new AttentionCoverageSum(attention.budget());
        results.forEach(head -> {
            plain.add(head.plain());
            moved.add(head.drifted());
        });
        AttentionPredictor predictor = weights == null
                ? null
                : weights.folded(results.stream().map(Head::map).toList(), attention.poolRows(), attention.blockSize());
        float[] needed = new float[heads * 2 * AttentionCalibration.COVERAGES.length];
        for (int h = 0; h < heads; h++) {
            float[] one = results.get(h).needed();
            System.arraycopy(one, 0, needed, h * one.length, one.length);
        }
        layers.add(new AttentionCalibration.Layer(tables.mean(), tables.highest(), needed,
                results.stream().map(Head::layout).toList(), predictor));
        figures.add(new Manifest.AttentionLayer(results.stream().map(Head::figures).toList(), plain.figures(),
                moved.figures()));
    }

    private float[] projected(@Nullable HeadProjections weights, AttentionUse use, int layer) {
        return weights == null ? new float[0] : weights.of(model.backend(), model.dtype(), use.pooled(layer));
    }

    private static List<PooledAttention> part(List<PooledAttention> samples, int[] of) {
        return Arrays.stream(of).mapToObj(samples::get).toList();
    }

    private AttentionHeadMap train(List<PooledAttention> samples, List<List<PooledAttention>> judges, long seed) {
        AttentionPredictorTrainer.Settings settings = new AttentionPredictorTrainer.Settings(attention.rank(), width,
                config.epochs(), config.noise(), seed);
        AttentionHeadMap map = AttentionPredictorTrainer.train(samples, settings, candidate -> {
            double judgement = 0;
            for (List<PooledAttention> judge : judges) {
                judgement += held(candidate, judge)
                        + LIKELIHOOD_SHARE * AttentionPredictorTrainer.likelihood(candidate, judge);
            }
            return judgement;
        });
        return extended(map, samples.stream().mapToInt(PooledAttention::blocks).max().orElse(1));
    }

    /** Blocks farther apart than any that were seen are scored as the farthest seen. */
    private static AttentionHeadMap extended(AttentionHeadMap map, int seen) {
        float[] distance = map.distance().clone();
        Arrays.fill(distance, Math.min(seen, distance.length), distance.length, distance[seen - 1]);
        return new AttentionHeadMap(map.rank(), map.headDim(), map.pq(), map.pk(), map.bq(), map.bk(), distance);
    }

    /** The part of the mass in what a map's scores choose at the budget. */
    private double held(AttentionHeadMap map, List<PooledAttention> samples) {
        double covered = 0;
        double total = 0;
        for (PooledAttention sample : samples) {
            boolean[] kept = AttentionChoice.choose(map.masses(sample, attention.poolRows()), sample.blocks(), 1,
                    attention.budget());
            covered += AttentionChoice.covered(sample.mass(), kept);
            for (float mass : sample.mass()) {
                total += mass;
            }
        }
        return total == 0 ? 1 : covered / total;
    }

    private AttentionCoverageSum cover(AttentionUse use, int layer, int head, float[] qk, @Nullable AttentionHeadMap map,
            float[] table, BlockPattern layout) {
        AttentionCoverageSum sum = new AttentionCoverageSum(attention.budget());
        List<PooledAttention> samples = map == null ? List.of() : use.head(layer, head, heads, qk);
        for (int s : use.half(1)) {
            float[] prediction = map == null ? null : map.masses(samples.get(s), attention.poolRows());
            sum.add(use.mass(layer, s, head), use.shapes().get(s).blocks(), prediction, table, layout);
        }
        return sum;
    }

    /** [mean and most, coverages]: the part of the blocks that held-out samples need; longer ones, which cost more, count more. */
    private float[] needed(int layer, int head) {
        int count = AttentionCalibration.COVERAGES.length;
        int samples = held.shapes().size();
        int[][] needed = new int[samples][];
        double causal = 0;
        for (int s = 0; s < samples; s++) {
            int n = held.shapes().get(s).blocks();
            needed[s] = AttentionChoice.needed(held.mass(layer, s, head), n, AttentionCalibration.COVERAGES);
            causal += AttentionChoice.causal(n);
        }
        float[] result = new float[2 * count];
        for (int c = 0; c < count; c++) {
            int at = c;
            double sum = 0;
            for (int s = 0; s < samples; s++) {
                sum += needed[s][c];
            }
            result[c] = (float) (sum / causal);
            List<Integer> byPart = IntStream.range(0, samples).boxed()
                    .sorted(Comparator.comparingDouble(s -> -part(needed[s][at], s))).toList();
            double beyond = 0;
            for (int s : byPart) {
                beyond += AttentionChoice.causal(held.shapes().get(s).blocks());
                if (beyond > FEWEST * causal) {
                    result[count + c] = (float) part(needed[s][c], s);
                    break;
                }
            }
        }
        return result;
    }

    private double part(int blocks, int sample) {
        return (double) blocks / AttentionChoice.causal(held.shapes().get(sample).blocks());
    }

    private Manifest.AttentionHead figures(int layer, int head, int[] layout, PatternPool pool, AttentionCoverageSum plain,
            AttentionCoverageSum moved) {
        Map<String, Double> mean = new TreeMap<>();
        Map<String, Double> worst = new TreeMap<>();
        double blocks = 0;
        double[] sums = new double[REPORTED.length];
        double[] highest = new double[REPORTED.length];
        for (int s = 0; s < held.shapes().size(); s++) {
            int n = held.shapes().get(s).blocks();
            int[] needed = AttentionChoice.needed(held.mass(layer, s, head), n, REPORTED);
            blocks += AttentionChoice.causal(n);
            for (int c = 0; c < REPORTED.length; c++) {
                sums[c] += needed[c];
                // Of a short sample nearly all blocks are kept always, which says nothing of its head.
                highest[c] = 2 * n < longest(held) ? highest[c] : Math.max(highest[c], part(needed[c], s));
            }
        }
        for (int c = 0; c < REPORTED.length; c++) {
            String key = String.format(Locale.ROOT, "%.2f", REPORTED[c]);
            mean.put(key, sums[c] / blocks);
            worst.put(key, highest[c]);
        }
        return new Manifest.AttentionHead(mean, worst,
                Arrays.stream(layout).mapToObj(entry -> pool.patterns().get(entry).name()).toList(), plain.figures(),
                moved.figures());
    }
}
