package dev.penumbra.sparse;

import java.util.ArrayList;
import java.util.List;

/**
 * Layouts that heads put theirs together from: those that are known to occur, and what was found in a model. A head's layout
 * is the union of some of them, by their places in the pool.
 *
 * @param version of the patterns' meaning
 * @param patterns all of one width, each name once
 */
public record PatternPool(int version, List<BlockPattern> patterns) {

    public static final int VERSION = 1;

    private static final int[] SINKS = {1, 2};
    private static final int[] WINDOWS = {1, 2, 3, 4, 6, 8, 12, 16};
    private static final int[] STRIDES = {2, 3, 4, 8};
    private static final int[] DIAGONALS = {2, 4, 8};

    public PatternPool {
        patterns = List.copyOf(patterns);
        if (version != VERSION) {
            throw new IllegalArgumentException("expected a pattern pool of version " + VERSION + ", found " + version);
        }
        if (patterns.isEmpty()) {
            throw new IllegalArgumentException("expected patterns in a pool, found none");
        }
        int width = patterns.getFirst().width();
        for (BlockPattern pattern : patterns) {
            if (pattern.width() != width) {
                throw new IllegalArgumentException("expected patterns of " + width + " blocks, found " + pattern);
            }
        }
        long names = patterns.stream().map(BlockPattern::name).distinct().count();
        if (names != patterns.size()) {
            throw new IllegalArgumentException("expected patterns of different names, found "
                    + patterns.stream().map(BlockPattern::name).toList());
        }
    }

    /**
     * The patterns that attention is known to have: sink columns, local windows, strided diagonals, strided columns, global
     * rows, blocks along the diagonal, and all. None is told by the sample's end, so that each has the prefix property.
     */
    public static PatternPool atomic(int width) {
        List<BlockPattern> patterns = new ArrayList<>();
        for (int n : SINKS) {
            add(patterns, "sink-" + n, width, n, (i, j) -> j < n);
        }
        for (int n : WINDOWS) {
            add(patterns, "local-" + n, width, n, (i, j) -> i - j < n);
        }
        for (int n : STRIDES) {
            add(patterns, "strided-" + n, width, n, (i, j) -> (i - j) % n == 0);
            add(patterns, "columns-" + n, width, n, (i, j) -> j % n == n - 1);
            add(patterns, "global-rows-" + n, width, n, (i, j) -> i % n == n - 1);
        }
        for (int n : DIAGONALS) {
            add(patterns, "block-diagonal-" + n, width, n, (i, j) -> i / n == j / n);
        }
        patterns.add(BlockPattern.of("dense", width, (i, j) -> true));
        return new PatternPool(VERSION, patterns);
    }

    /** Where it is not the same as all blocks. */
    private static void add(List<BlockPattern> patterns, String name, int width, int smallest, BlockPattern.Rule rule) {
        if (smallest < width) {
            patterns.add(BlockPattern.of(name, width, rule));
        }
    }

    /** With more patterns behind its own. */
    public PatternPool with(List<BlockPattern> more) {
        List<BlockPattern> all = new ArrayList<>(patterns);
        all.addAll(more);
        return new PatternPool(version, all);
    }

    public int width() {
        return patterns.getFirst().width();
    }

    /** A head's layout: what some entries of the pool have together, and the blocks that are kept always. */
    public BlockPattern union(int... entries) {
        BlockPattern result = always(width());
        for (int entry : entries) {
            result = result.union(patterns.get(entry));
        }
        return result;
    }

    /** What every choice keeps: the diagonal's blocks, and those of key block 0. */
    public static BlockPattern always(int width) {
        return BlockPattern.of("always", width, (i, j) -> i == j || j == 0);
    }
}
