package dev.penumbra.sparse;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.junit.jupiter.api.Test;

class PatternPoolTest {

    @ParameterizedTest
    @ValueSource(ints = {1, 2, 3, 7, 16, 33})
    void aShorterSamplesLayoutIsThePrefixOfEachTable(int width) {
        PatternPool pool = PatternPool.atomic(width);
        for (int blocks = 1; blocks <= width; blocks++) {
            PatternPool shorter = PatternPool.atomic(blocks);
            for (BlockPattern pattern : pool.patterns()) {
                requirePrefix(pattern, blocks);
                // The same pattern made for the shorter length is the same layout, where it is not all blocks there.
                shorter.patterns().stream().filter(other -> other.name().equals(pattern.name())).forEach(
                        other -> assertThat(other.mask(other.width())).as("%s, %d blocks", pattern, other.width())
                                .isEqualTo(pattern.mask(other.width())));
            }
        }
    }

    /** What the tables say of a sample of so many blocks, against the layout's upper left part. */
    private static void requirePrefix(BlockPattern pattern, int blocks) {
        BlockMask mask = pattern.mask(blocks);
        int count = 0;
        for (int i = 0; i < blocks; i++) {
            int query = i;
            int[] keys = IntStream.rangeClosed(0, i).filter(j -> mask.keeps(0, query, j)).toArray();
            assertThat(pattern.keys(i)).as("%s, %d blocks, query block %d", pattern, blocks, i).isEqualTo(keys);
            int key = i;
            int[] queries = IntStream.range(i, blocks).filter(q -> mask.keeps(0, q, key)).toArray();
            assertThat(Arrays.copyOf(pattern.queries(i), pattern.queryCount(i, blocks)))
                    .as("%s, %d blocks, key block %d", pattern, blocks, i).isEqualTo(queries);
            count += keys.length;
        }
        assertThat(pattern.count(blocks)).as("%s, %d blocks", pattern, blocks).isEqualTo(count).isEqualTo(mask.count(0));
    }

    @Test
    void anyLayoutHasThePrefixPropertyAndUnionsToo() {
        long seed = 3;
        Random random = new Random(seed);
        int width = 12;
        BlockPattern one = BlockPattern.of("one", width, (i, j) -> random.nextInt(3) == 0);
        BlockPattern other = BlockPattern.of("other", width, (i, j) -> random.nextInt(4) == 0);
        PatternPool pool = PatternPool.atomic(width).with(List.of(one, other));
        int first = pool.patterns().size() - 2;
        BlockPattern union = pool.union(first, first + 1);
        for (int blocks = 1; blocks <= width; blocks++) {
            requirePrefix(one, blocks);
            requirePrefix(union, blocks);
        }
        for (int i = 0; i < width; i++) {
            for (int j = 0; j <= i; j++) {
                assertThat(union.keeps(i, j)).as("seed %d, block %d, %d", seed, i, j)
                        .isEqualTo(one.keeps(i, j) || other.keeps(i, j) || i == j || j == 0);
            }
        }
    }

    @Test
    void theKnownPatternsAreThere() {
        PatternPool pool = PatternPool.atomic(16);
        assertThat(pool.patterns()).extracting(BlockPattern::name).contains("sink-1", "local-4", "strided-4", "columns-4",
                "global-rows-4", "block-diagonal-4", "dense");
        assertThat(pool.patterns().getLast().keptPart(16)).isEqualTo(1);
        assertThat(pool.union().count(16)).isEqualTo(31);
        BlockPattern local = pool.patterns().stream().filter(p -> p.name().equals("local-2")).findFirst().orElseThrow();
        assertThat(local.keys(5)).containsExactly(4, 5);
        assertThat(local.queries(5)).containsExactly(5, 6);
        assertThat(local.queryCount(5, 6)).isEqualTo(1);
        assertThat(local.toTable()[5 * 16 + 4]).isEqualTo(1);
    }

    @Test
    void whatIsNoPoolIsRefused() {
        assertThatThrownBy(() -> new PatternPool(2, PatternPool.atomic(4).patterns()))
                .isInstanceOf(IllegalArgumentException.class).hasMessage("expected a pattern pool of version 1, found 2");
        assertThatThrownBy(() -> PatternPool.atomic(4).with(PatternPool.atomic(5).patterns()))
                .hasMessageContaining("expected patterns of 4 blocks, found pattern sink-1 of 5 blocks");
        assertThatThrownBy(() -> PatternPool.atomic(4).with(PatternPool.atomic(4).patterns()))
                .hasMessageContaining("expected patterns of different names");
    }

    @Test
    void blocksThatAreNoneAreRefused() {
        BlockMask mask = BlockMask.of(2, 4, (head, i, j) -> true);
        assertThat(mask.keeps(1, 3, 0)).isTrue();
        assertThat(mask.keeps(1, 0, 3)).as("after the query").isFalse();
        int[][] outside = {{2, 0, 0}, {-1, 0, 0}, {0, 4, 0}, {0, 0, 5}};
        for (int[] at : outside) {
            assertThatThrownBy(() -> mask.keeps(at[0], at[1], at[2])).isInstanceOf(IndexOutOfBoundsException.class);
        }
        assertThatThrownBy(() -> mask.count(2)).isInstanceOf(IndexOutOfBoundsException.class);
        BlockPattern pattern = BlockPattern.of("all", 4, (i, j) -> true);
        assertThat(pattern.keeps(3, 1)).isTrue();
        assertThatThrownBy(() -> pattern.keeps(0, 5)).isInstanceOf(IndexOutOfBoundsException.class);
    }
}
