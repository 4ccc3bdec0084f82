package dev.penumbra.jmh;

import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import java.util.ArrayList;
import java.util.List;

/**
 * One way to tune that the quality experiment looks at.
 *
 * @param ordered whether neurons lie in the calibration's order, or as in the checkpoint
 * @param spread how layers share the budget
 * @param attention what of attention is skipped, beside the MLPs' blocks or alone
 */
record Quality(SelectionPolicy policy, Pass pass, int block, int rowsPerList, double coverage, double budget,
        boolean ordered,
        Spread spread,
        Attention attention) {

    /** What of attention a way to tune skips. */
    record Attention(AttentionPolicy policy, Pass pass, double coverage, double budget) {

        static final Attention DENSE = new Attention(AttentionPolicy.OFF, Pass.BACKWARD, 1, 1);

        boolean isDense() {
            return policy == AttentionPolicy.OFF;
        }

        private String key() {
            return String.format(java.util.Locale.ROOT, "attention-%s-%s-c%.3f-k%.3f", policy.word(),
                    pass.name().toLowerCase(java.util.Locale.ROOT), coverage, budget);
        }

        AttentionConfig config(int senseEvery) {
            return isDense()
                    ? AttentionConfig.OFF
                    : new AttentionConfig(policy, pass, coverage, budget, AttentionConfig.DEFAULT_BLOCK, DENSE_WARMUP,
                            senseEvery, false);
        }
    }

    /** How layers share a budget. */
    enum Spread {
        /** Each keeps it. */
        UNIFORM("a layer"),
        /** They cover as much as one another, and keep it in the mean. */
        EQUAL("at equal coverage"),
        /** Upper layers keep more, as {@link TaperedBudgets} says. */
        TAPERED("more in upper layers");

        final String words;

        Spread(String words) {
            this.words = words;
        }
    }

    /** The first steps are dense, as SparseLoRA's are. */
    static final double DENSE_WARMUP = 0.05;

    static final Quality DENSE = new Quality(SelectionPolicy.OFF, Pass.BACKWARD, 128, 0, 1, 1, true, Spread.UNIFORM,
            Attention.DENSE);

    boolean isDense() {
        return policy == SelectionPolicy.OFF && attention.isDense();
    }

    /** Tells it from others, in files. */
    String key() {
        return policy == SelectionPolicy.OFF && !attention.isDense()
                ? attention.key()
                : mlpKey() + (attention.isDense() ? "" : "+" + attention.key());
    }

    private String mlpKey() {
        return policy == SelectionPolicy.OFF
                ? "dense"
                : String.format(java.util.Locale.ROOT, "%s-%s-b%d-r%d-c%.3f-k%.3f%s%s", policy.word(),
                        pass.name().toLowerCase(java.util.Locale.ROOT), block, rowsPerList, coverage, budget,
                        ordered ? "" : "-unordered",
                        spread == Spread.UNIFORM ? "" : "-" + spread.name().toLowerCase(java.util.Locale.ROOT));
    }

    /** @param coverageOf the coverage that keeps a budget over all layers */
    SparsityConfig config(java.util.function.ToDoubleFunction<Quality> coverageOf, int senseEvery) {
        if (policy == SelectionPolicy.OFF) {
            return SparsityConfig.OFF;
        }
        double asked = switch (spread) {
            case UNIFORM -> coverage;
            case EQUAL -> coverageOf.applyAsDouble(this);
            case TAPERED -> TaperedBudgets.COVERAGE;
        };
        return new SparsityConfig(policy, pass, asked, spread == Spread.UNIFORM ? budget : 1, block, rowsPerList,
                DENSE_WARMUP,
                senseEvery, false);
    }

    private Quality with(int otherBlock, int rows) {
        return new Quality(policy, pass, otherBlock, rows, coverage, budget, ordered, spread, attention);
    }

    private Quality spread(Spread other) {
        return new Quality(policy, pass, block, rowsPerList, coverage, budget, ordered, other, attention);
    }

    private Quality unordered() {
        return new Quality(policy, pass, block, rowsPerList, coverage, budget, false, spread, attention);
    }

    private static Quality budget(SelectionPolicy policy, Pass pass, double budget) {
        return new Quality(policy, pass, 32, 256, 1, budget, true, Spread.UNIFORM, Attention.DENSE);
    }

    private static Quality coverage(SelectionPolicy policy, Pass pass, double coverage) {
        return new Quality(policy, pass, 32, 256, coverage, 1, true, Spread.UNIFORM, Attention.DENSE);
    }

    private Quality with(Attention other) {
        return new Quality(policy, pass, block, rowsPerList, coverage, budget, ordered, spread, other);
    }

    private static Quality attention(AttentionPolicy policy, Pass pass, double coverage, double budget) {
        return DENSE.with(new Attention(policy, pass, coverage, budget));
    }

    /** Of attention, alone and with the MLPs' blocks. */
    static List<Quality> ofAttention() {
        List<Quality> ways = new ArrayList<>(List.of(DENSE));
        for (double coverage : new double[]{0.99, 0.95, 0.9}) {
            ways.add(attention(AttentionPolicy.ORACLE, Pass.BACKWARD, coverage, 1));
        }
        for (double coverage : new double[]{0.995, 0.99, 0.95}) {
            ways.add(attention(AttentionPolicy.PREDICTED, Pass.BOTH, coverage, 1));
        }
        for (double coverage : new double[]{0.95, 0.9}) {
            ways.add(coverage(SelectionPolicy.ORACLE, Pass.BACKWARD, 0.9)
                    .with(new Attention(AttentionPolicy.ORACLE, Pass.BACKWARD, coverage, 1)));
        }
        for (double[] coverages : new double[][]{{0.99, 0.99}, {0.99, 0.995}, {0.995, 0.995}}) {
            ways.add(coverage(SelectionPolicy.PREDICTED, Pass.BOTH, coverages[0])
                    .with(new Attention(AttentionPolicy.PREDICTED, Pass.BOTH, coverages[1], 1)));
        }
        for (double budget : new double[]{0.7, 0.5, 0.3}) {
            ways.add(attention(AttentionPolicy.ORACLE, Pass.BACKWARD, 1, budget));
            ways.add(attention(AttentionPolicy.RANDOM, Pass.BACKWARD, 1, budget));
            for (AttentionPolicy policy : List.of(AttentionPolicy.PREDICTED, AttentionPolicy.STATIC, AttentionPolicy.BIGBIRD,
                    AttentionPolicy.LONGFORMER, AttentionPolicy.RANDOM, AttentionPolicy.ORACLE)) {
                ways.add(attention(policy, Pass.BOTH, 1, budget));
            }
        }
        ways.add(budget(SelectionPolicy.ORACLE, Pass.BACKWARD, 0.5)
                .with(new Attention(AttentionPolicy.ORACLE, Pass.BACKWARD, 1, 0.5)));
        return ways;
    }

    /** What the claims rest on. */
    static List<Quality> main() {
        List<Quality> main = new ArrayList<>(List.of(DENSE));
        for (double budget : new double[]{0.5, 0.25}) {
            main.add(budget(SelectionPolicy.ORACLE, Pass.BACKWARD, budget));
            main.add(budget(SelectionPolicy.ORACLE, Pass.BACKWARD, budget).spread(Spread.EQUAL));
            main.add(budget(SelectionPolicy.ORACLE, Pass.BACKWARD, budget).spread(Spread.TAPERED));
        }
        for (double coverage : new double[]{0.99, 0.98, 0.95}) {
            main.add(coverage(SelectionPolicy.PREDICTED, Pass.BOTH, coverage));
        }
        for (SelectionPolicy policy : List.of(SelectionPolicy.PREDICTED, SelectionPolicy.STATIC, SelectionPolicy.RANDOM)) {
            main.add(budget(policy, Pass.BOTH, 0.5));
        }
        main.add(budget(SelectionPolicy.SEED, Pass.BOTH, 0.5).with(128, 0).unordered());
        return main;
    }

    /** What tells where it comes from. */
    static List<Quality> more() {
        List<Quality> more = new ArrayList<>();
        more.add(budget(SelectionPolicy.ORACLE, Pass.BOTH, 0.5));
        more.add(budget(SelectionPolicy.LOW_RANK, Pass.BOTH, 0.5));
        more.add(budget(SelectionPolicy.PREDICTED, Pass.BOTH, 0.5).spread(Spread.EQUAL));
        more.add(coverage(SelectionPolicy.PREDICTED, Pass.BOTH, 0.999));
        for (double budget : new double[]{0.5, 0.25}) {
            Quality oracle = budget(SelectionPolicy.ORACLE, Pass.BACKWARD, budget);
            more.add(oracle.with(32, 0));
            more.add(oracle.with(128, 0));
            more.add(oracle.with(32, 0).unordered());
            more.add(budget(SelectionPolicy.STATIC, Pass.BACKWARD, budget));
            more.add(budget(SelectionPolicy.RANDOM, Pass.BACKWARD, budget));
            more.add(budget(SelectionPolicy.SEED, Pass.BACKWARD, budget).with(128, 0).unordered());
        }
        more.add(budget(SelectionPolicy.PREDICTED, Pass.BOTH, 0.75));
        more.add(budget(SelectionPolicy.PREDICTED, Pass.BOTH, 0.25));
        more.add(coverage(SelectionPolicy.PREDICTED, Pass.BOTH, 0.9));
        more.add(coverage(SelectionPolicy.ORACLE, Pass.BOTH, 0.99));
        more.add(coverage(SelectionPolicy.ORACLE, Pass.BACKWARD, 0.9));
        more.add(budget(SelectionPolicy.ORACLE, Pass.BACKWARD, 0.5).with(128, 256));
        more.add(budget(SelectionPolicy.ORACLE, Pass.BACKWARD, 0.25).with(128, 256));
        return more;
    }
}
