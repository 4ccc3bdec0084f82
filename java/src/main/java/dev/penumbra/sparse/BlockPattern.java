package dev.penumbra.sparse;

import java.util.Arrays;
import java.util.BitSet;
import java.util.Locale;
import java.util.Objects;

/**
 * One causal layout of width x width blocks, with its index tables: which key blocks each query block attends to, and which
 * query blocks attend to each key block.
 *
 * <p>Blocks are counted from a sample's first row and none is attended to by an earlier one, so that the layout of a shorter
 * sample is the upper left part of this one. The tables hold for it as they are: the first {@code blocks} rows of the key
 * blocks' table name nothing beyond themselves, and of a row of the query blocks' table, which ascends, it takes the first
 * {@link #queryCount}.
 */
public final class BlockPattern {

    private final String name;
    private final int width;
    /** [width, width]. */
    private final BitSet kept;
    private final int[][] keys;
    private final int[][] queries;

    /** Tells whether a query block attends to a key block at or before it. */
    @FunctionalInterface
    public interface Rule {
        boolean keeps(int query, int key);
    }

    private BlockPattern(String name, int width, BitSet kept) {
        if (width < 1) {
            throw new IllegalArgumentException("pattern " + name + ": expected a width of 1 block or more, found " + width);
        }
        this.name = name;
        this.width = width;
        this.kept = kept;
        keys = new int[width][];
        queries = new int[width][];
        int[][] queriesSoFar = new int[width][width];
        int[] counts = new int[width];
        for (int i = 0; i < width; i++) {
            int[] row = new int[i + 1];
            int count = 0;
            for (int j = 0; j <= i; j++) {
                if (keeps(i, j)) {
                    row[count++] = j;
                    queriesSoFar[j][counts[j]++] = i;
                }
            }
            keys[i] = Arrays.copyOf(row, count);
        }
        for (int j = 0; j < width; j++) {
            queries[j] = Arrays.copyOf(queriesSoFar[j], counts[j]);
        }
    }

    /** By a rule, which is asked for blocks on and below the diagonal. */
    public static BlockPattern of(String name, int width, Rule rule) {
        BitSet kept = new BitSet(width * width);
        for (int i = 0; i < width; i++) {
            for (int j = 0; j <= i; j++) {
                kept.set(i * width + j, rule.keeps(i, j));
            }
        }
        return new BlockPattern(name, width, kept);
    }

    public String name() {
        return name;
    }

    public int width() {
        return width;
    }

    /**
     * Whether a query block attends to a key block; to none after itself.
     *
     * @throws IndexOutOfBoundsException when there is no such block
     */
    public boolean keeps(int query, int key) {
        Objects.checkIndex(query, width);
        Objects.checkIndex(key, width);
        return kept.get(query * width + key);
    }

    /** The key blocks of a query block, ascending, in samples of any length that have it. */
    public int[] keys(int query) {
        return keys[query].clone();
    }

    /** The query blocks of a key block, ascending; those of a shorter sample are the first {@link #queryCount}. */
    public int[] queries(int key) {
        return queries[key].clone();
    }

    /** Query blocks of a key block in a sample of so many blocks. */
    public int queryCount(int key, int blocks) {
        int at = Arrays.binarySearch(queries[key], blocks);
        return at < 0 ? -at - 1 : at;
    }

    /** Blocks that a sample of so many has in this layout. */
    public int count(int blocks) {
        int sum = 0;
        for (int i = 0; i < blocks; i++) {
            sum += keys[i].length;
        }
        return sum;
    }

    /** The part of a sample's blocks on and below the diagonal. */
    public double keptPart(int blocks) {
        return (double) count(blocks) / (blocks * (blocks + 1) / 2);
    }

    /** All that either layout has. */
    public BlockPattern union(BlockPattern other) {
        if (other.width != width) {
            throw new IllegalArgumentException(
                    "expected a pattern of " + width + " blocks, found " + other.name + " of " + other.width);
        }
        BitSet both = (BitSet) kept.clone();
        both.or(other.kept);
        return new BlockPattern(name + "+" + other.name, width, both);
    }

    /** The layout of a sample of so many blocks. */
    public BlockMask mask(int blocks) {
        if (blocks > width) {
            throw new IllegalArgumentException(
                    "pattern " + name + ": expected at most " + width + " blocks, found " + blocks);
        }
        return BlockMask.of(1, blocks, (head, i, j) -> keeps(i, j));
    }

    /** 1 for each block of the layout: [width, width]. */
    public float[] toTable() {
        float[] table = new float[width * width];
        kept.stream().forEach(at -> table[at] = 1);
        return table;
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof BlockPattern pattern && pattern.name.equals(name) && pattern.width == width
                && pattern.kept.equals(kept);
    }

    @Override
    public int hashCode() {
        return 31 * name.hashCode() + kept.hashCode();
    }

    @Override
    public String toString() {
        return String.format(Locale.ROOT, "pattern %s of %d blocks, %.1f%% kept", name, width, 100 * keptPart(width));
    }
}
