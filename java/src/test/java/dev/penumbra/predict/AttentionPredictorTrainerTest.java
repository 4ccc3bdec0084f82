package dev.penumbra.predict;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class AttentionPredictorTrainerTest {

    private static final int PER_BLOCK = 4;
    private static final int POOL_ROWS = 32;
    private static final int MOST_BLOCKS = 10;

    /** A head whose blocks' masses come from thin maps that nobody knows, and from how far blocks lie apart. */
    private static AttentionHeadMap hidden(int rank, int headDim, Random random) {
        return new AttentionHeadMap(rank, headDim, gaussians(random, rank * headDim, 1.2 / Math.sqrt(headDim)),
                gaussians(random, rank * headDim, 1.2 / Math.sqrt(headDim)), new float[rank],
                gaussians(random, rank, 0.3), gaussians(random, MOST_BLOCKS, 0.5));
    }

    private static float[] gaussians(Random random, int count, double deviation) {
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) (deviation * random.nextGaussian());
        }
        return values;
    }

    private static List<PooledAttention> samples(AttentionHeadMap truth, int count, Random random) {
        List<PooledAttention> samples = new ArrayList<>();
        for (int s = 0; s < count; s++) {
            int blocks = random.nextInt(5, MOST_BLOCKS + 1);
            int[] blockOf = new int[blocks * PER_BLOCK - random.nextInt(PER_BLOCK)];
            Arrays.setAll(blockOf, g -> g / PER_BLOCK);
            int values = blockOf.length * truth.headDim();
            PooledAttention bare = new PooledAttention(blocks, blockOf, gaussians(random, values, 1),
                    gaussians(random, values, 1), new float[blocks * blocks]);
            samples.add(new PooledAttention(blocks, blockOf, bare.q(), bare.k(), truth.masses(bare, POOL_ROWS)));
        }
        return samples;
    }

    /** The part of what the always kept blocks leave that the best {@code share} of the others by these scores hold. */
    private static double covered(List<PooledAttention> samples,
            java.util.function.Function<PooledAttention, float[]> scores) {
        double covered = 0;
        double total = 0;
        for (PooledAttention sample : samples) {
            int n = sample.blocks();
            float[] s = scores.apply(sample);
            List<Integer> free = new ArrayList<>();
            for (int at = 0; at < n * n; at++) {
                if (at % n != 0 && at % n < at / n) {
                    free.add(at);
                    total += sample.mass()[at];
                }
            }
            free.sort((a, b) -> Float.compare(s[b], s[a]));
            for (int at : free.subList(0, free.size() / 4)) {
                covered += sample.mass()[at];
            }
        }
        return covered / total;
    }

    private static float[] table(List<PooledAttention> samples, PooledAttention of) {
        int n = of.blocks();
        float[] table = new float[n * n];
        for (PooledAttention sample : samples) {
            for (int i = 0; i < Math.min(n, sample.blocks()); i++) {
                for (int j = 0; j <= i; j++) {
                    table[i * n + j] += sample.part(i, j);
                }
            }
        }
        return table;
    }

    @ParameterizedTest
    @CsvSource({"4, 16, 11", "8, 24, 12", "3, 64, 13"})
    void aLowRankStructureIsLearntAndBeatsWhatIsTheSameForEverySample(int rank, int headDim, long seed) {
        Random random = new Random(seed);
        AttentionHeadMap truth = hidden(rank, headDim, random);
        List<PooledAttention> made = samples(truth, 160, random);
        List<PooledAttention> held = samples(truth, 40, random);
        AttentionHeadMap learnt = AttentionPredictorTrainer.train(made,
                new AttentionPredictorTrainer.Settings(8, MOST_BLOCKS, 30, 0.02, seed),
                map -> AttentionPredictorTrainer.likelihood(map, held));
        double oracle = covered(held, PooledAttention::mass);
        double predicted = covered(held, sample -> learnt.masses(sample, POOL_ROWS));
        double fixed = covered(held, sample -> table(made, sample));
        double byLot = covered(held, sample -> gaussians(random, sample.mass().length, 1));
        String as = String.format("rank %d, head of %d, seed %d: oracle %.3f, predicted %.3f, static %.3f, random %.3f",
                rank,
                headDim, seed, oracle, predicted, fixed, byLot);
        assertThat(predicted / oracle).as(as).isGreaterThan(0.9);
        assertThat(predicted).as(as).isGreaterThan(1.1 * fixed).isGreaterThan(1.3 * byLot);
        assertThat(fixed).as(as).isGreaterThan(byLot);
    }

    @Test
    void withoutEpochsTheMapsKeepTheProductsOfQueriesAndKeys() {
        // Of the full rank nothing but the keys' mean is lost, which a softmax does not see.
        long seed = 21;
        int headDim = 8;
        Random random = new Random(seed);
        List<PooledAttention> made = samples(hidden(4, headDim, random), 40, random);
        AttentionHeadMap first = AttentionPredictorTrainer.train(made,
                new AttentionPredictorTrainer.Settings(headDim, MOST_BLOCKS, 0, 0, seed), map -> 0);
        float[] identity = new float[headDim * headDim];
        for (int d = 0; d < headDim; d++) {
            identity[d * headDim + d] = (float) Math.pow(headDim, -0.25);
        }
        AttentionHeadMap exact = new AttentionHeadMap(headDim, headDim, identity, identity, new float[headDim],
                new float[headDim], new float[MOST_BLOCKS]);
        float[] expected = exact.masses(made.getFirst(), POOL_ROWS);
        float[] found = first.masses(made.getFirst(), POOL_ROWS);
        for (int at = 0; at < expected.length; at++) {
            assertThat(found[at]).as("seed %d, block %d", seed, at).isCloseTo(expected[at], within(0.02f * POOL_ROWS));
        }
    }

    @Test
    void massesOfAQueryBlockAddUpToItsPooledRows() {
        Random random = new Random(5);
        AttentionHeadMap map = hidden(4, 8, random);
        // The last block of four has no pooled row: it looks where the row before it does, and nobody looks at it.
        PooledAttention sample = new PooledAttention(4, new int[]{0, 0, 1, 1, 2}, gaussians(random, 40, 1),
                gaussians(random, 40, 1), new float[16]);
        float[] mass = map.masses(sample, POOL_ROWS);
        int[] rows = {2, 2, 1, 1};
        for (int i = 0; i < 4; i++) {
            float sum = 0;
            for (int j = 0; j < 4; j++) {
                sum += mass[i * 4 + j];
                if (j > i) {
                    assertThat(mass[i * 4 + j]).isZero();
                }
            }
            assertThat(sum).as("block %d", i).isCloseTo(rows[i] * POOL_ROWS, within(1e-3f));
            assertThat(mass[i * 4 + 3]).as("block %d", i).isZero();
        }
        assertThat(Arrays.copyOfRange(mass, 12, 15)).isEqualTo(Arrays.copyOfRange(mass, 8, 11));
    }

    @Test
    void theSameSeedGivesTheSameMaps() {
        Random random = new Random(6);
        List<PooledAttention> made = samples(hidden(4, 8, random), 10, random);
        var settings = new AttentionPredictorTrainer.Settings(8, MOST_BLOCKS, 2, 0.05, 9);
        AttentionHeadMap one = AttentionPredictorTrainer.train(made, settings, map -> map.pq()[0]);
        AttentionHeadMap other = AttentionPredictorTrainer.train(made, settings, map -> map.pq()[0]);
        assertThat(one.pq()).isEqualTo(other.pq());
        assertThat(one.distance()).isEqualTo(other.distance());
    }

    @Test
    void whatDoesNotFitIsRefused() {
        assertThatThrownBy(() -> AttentionPredictorTrainer.train(List.of(),
                new AttentionPredictorTrainer.Settings(8, 4, 1, 0, 1), map -> 0))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessage("expected samples to train with, found none");
        assertThatThrownBy(() -> new PooledAttention(2, new int[]{0, 2}, new float[4], new float[4], new float[4]))
                .hasMessage("expected pooled rows in blocks that ascend below 2, found 2 after 0");
        assertThatThrownBy(() -> new PooledAttention(2, new int[]{0, 1}, new float[4], new float[4], new float[3]))
                .hasMessage("expected masses of 2 x 2 blocks, found 3");
    }
}
