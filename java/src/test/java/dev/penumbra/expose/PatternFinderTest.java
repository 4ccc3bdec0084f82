package dev.penumbra.expose;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.sparse.BlockPattern;
import dev.penumbra.sparse.PatternPool;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;

class PatternFinderTest {

    private static final int WIDTH = 16;

    /** Rows of parts: most of what is off the always kept blocks lies where the rule says, the rest anywhere. */
    private static float[] table(BlockPattern.Rule rule, Random random) {
        float[] table = new float[WIDTH * WIDTH];
        for (int i = 0; i < WIDTH; i++) {
            float sum = 0;
            for (int j = 0; j <= i; j++) {
                table[i * WIDTH + j] = (rule.keeps(i, j) ? 1 : 0.05f) * (0.8f + 0.4f * random.nextFloat());
                sum += table[i * WIDTH + j];
            }
            for (int j = 0; j <= i; j++) {
                table[i * WIDTH + j] /= sum;
            }
        }
        return table;
    }

    private static double held(float[] table, BlockPattern layout) {
        double sum = 0;
        double all = 0;
        for (int i = 0; i < WIDTH; i++) {
            for (int j = 0; j <= i; j++) {
                sum += layout.keeps(i, j) ? table[i * WIDTH + j] : 0;
                all += table[i * WIDTH + j];
            }
        }
        return sum / all;
    }

    @Test
    void layoutsThatHeadsShareAreFound() {
        long seed = 6;
        Random random = new Random(seed);
        // Two layouts that no known pattern is.
        List<BlockPattern.Rule> rules = List.of((i, j) -> j == 5 || j == 6, (i, j) -> i - j == 5 || i - j == 6);
        List<float[]> tables = new ArrayList<>();
        for (int head = 0; head < 20; head++) {
            tables.add(table(rules.get(head % 2), random));
        }
        PatternPool pool = PatternFinder.pool(tables, WIDTH, 0.4, seed);
        assertThat(pool.patterns().getLast().name()).startsWith("found-");
        for (int head = 0; head < 20; head++) {
            int[] entries = PatternFinder.layout(pool, tables.get(head), 0.4);
            BlockPattern layout = pool.union(entries);
            boolean[] best = AttentionChoice.choose(tables.get(head), WIDTH, 1, 0.4);
            double oracle = AttentionChoice.covered(tables.get(head), best) / WIDTH;
            assertThat(layout.count(WIDTH)).as("seed %d, head %d", seed, head)
                    .isLessThanOrEqualTo(AttentionChoice.most(WIDTH, 0.4));
            assertThat(held(tables.get(head), layout)).as("seed %d, head %d: %s of %.3f", seed, head, layout, oracle)
                    .isGreaterThan(0.9 * oracle);
        }
    }

    @Test
    void aKnownPatternIsChosenForAHeadThatHasIt() {
        Random random = new Random(7);
        float[] local = table((i, j) -> i - j < 3, random);
        PatternPool pool = PatternPool.atomic(WIDTH);
        List<String> names = new ArrayList<>();
        for (int entry : PatternFinder.layout(pool, local, 0.45)) {
            names.add(pool.patterns().get(entry).name());
        }
        assertThat(names).contains("local-3");
    }

    @Test
    void aBudgetThatLeavesNothingFindsNothing() {
        List<float[]> tables = List.of(table((i, j) -> true, new Random(8)));
        assertThat(PatternFinder.pool(tables, WIDTH, 0.1, 1)).isEqualTo(PatternPool.atomic(WIDTH));
        assertThat(PatternFinder.layout(PatternPool.atomic(WIDTH), tables.getFirst(), 0.1)).isEmpty();
    }

    @Test
    void beyondTheLongestSampleABlockCountsAsThoseAtItsDistance() {
        AttentionUse use = new AttentionUse(1);
        float[] mass = {4, 0, 0, 1, 3, 0, 1, 1, 2};
        use.add(new AttentionUse.Shape(0, 3, new int[]{0, 1, 2}), java.util.Collections.singletonList(null), List.of(mass));
        float[] mean = MassTables.of(use, 0, 1, 5, new int[]{0}).mean();
        assertThat(mean[2 * 5 + 1]).isEqualTo(0.25f);
        assertThat(mean[4 * 5]).as("the first key block, as in the longest").isEqualTo(0.25f);
        assertThat(mean[4 * 5 + 4]).as("the diagonal").isCloseTo((0.75f + 0.5f) / 2, within(1e-6f));
        assertThat(mean[4 * 5 + 3]).as("a neighbour").isEqualTo(0.25f);
        assertThat(mean[4 * 5 + 1]).as("farther than any").isEqualTo(0.25f);
        assertThat(mean[3 * 5 + 4]).as("above the diagonal").isZero();
    }
}
