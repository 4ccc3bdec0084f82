package dev.penumbra.sparse;

import dev.penumbra.internal.Counted;
import java.util.BitSet;
import java.util.List;
import java.util.Locale;
import java.util.Objects;

/** Which blocks of keys each block of queries of one sample attends to, head by head, on the host. */
public final class BlockMask {

    private final int heads;
    private final int blocks;
    /** [heads, blocks, blocks]. */
    private final BitSet kept;

    private BlockMask(int heads, int blocks, BitSet kept) {
        if (heads < 1 || blocks < 1) {
            throw new IllegalArgumentException("expected heads and blocks of 1 or more, found " + heads + " and " + blocks);
        }
        this.heads = heads;
        this.blocks = blocks;
        this.kept = kept;
    }

    /** Tells whether head {@code head}'s query block attends to a key block at or before it. */
    @FunctionalInterface
    public interface Rule {
        boolean keeps(int head, int query, int key);
    }

    /** By a rule, which is asked for blocks on and below the diagonal. */
    public static BlockMask of(int heads, int blocks, Rule rule) {
        BitSet kept = new BitSet(heads * blocks * blocks);
        for (int h = 0; h < heads; h++) {
            for (int i = 0; i < blocks; i++) {
                for (int j = 0; j <= i; j++) {
                    kept.set((h * blocks + i) * blocks + j, rule.keeps(h, i, j));
                }
            }
        }
        return new BlockMask(heads, blocks, kept);
    }

    /**
     * Of a sample's lists, as {@link dev.penumbra.backend.op.AttentionBlocks} lays them out.
     *
     * @param blocks of the sample
     * @param indices [heads, slots, width]
     * @param counts [heads, slots]
     * @param firstSlot the sample's first block's
     */
    public static BlockMask ofLists(int heads, int blocks, int[] indices, int[] counts, int slots, int firstSlot) {
        if (counts.length != heads * slots || indices.length % Math.max(1, counts.length) != 0
                || firstSlot + blocks > slots) {
            throw new IllegalArgumentException("expected lists of " + heads + " heads and " + slots + " slots that hold "
                    + blocks + " blocks from slot " + firstSlot + " on, found " + counts.length + " counts and "
                    + indices.length + " indices");
        }
        int width = indices.length / counts.length;
        BitSet kept = new BitSet(heads * blocks * blocks);
        for (int h = 0; h < heads; h++) {
            for (int i = 0; i < blocks; i++) {
                int list = h * slots + firstSlot + i;
                for (int n = 0; n < counts[list]; n++) {
                    int key = indices[list * width + n];
                    if (key < 0 || key > i) {
                        throw new IllegalArgumentException("head " + h + ", query block " + i
                                + ": expected key blocks from 0 to " + i + ", found " + key);
                    }
                    kept.set((h * blocks + i) * blocks + key);
                }
            }
        }
        return new BlockMask(heads, blocks, kept);
    }

    public int heads() {
        return heads;
    }

    /** Blocks of the sample. */
    public int blocks() {
        return blocks;
    }

    /**
     * Whether a head's query block attends to a key block; to none after itself.
     *
     * @throws IndexOutOfBoundsException when there is no such head or block
     */
    public boolean keeps(int head, int query, int key) {
        Objects.checkIndex(head, heads);
        Objects.checkIndex(query, blocks);
        Objects.checkIndex(key, blocks);
        return kept.get((head * blocks + query) * blocks + key);
    }

    /** Blocks that a head keeps. */
    public int count(int head) {
        Objects.checkIndex(head, heads);
        int from = head * blocks * blocks;
        return kept.get(from, from + blocks * blocks).cardinality();
    }

    /** The part that a head keeps of the blocks on and below the diagonal. */
    public double keptPart(int head) {
        return (double) count(head) / (blocks * (blocks + 1) / 2);
    }

    /** The part that all heads keep of the blocks on and below the diagonal. */
    public double keptPart() {
        return (double) kept.cardinality() / ((double) heads * blocks * (blocks + 1) / 2);
    }

    /**
     * Draws the heads side by side.
     *
     * @param label what the picture is of, for those who do not see it
     */
    public String svg(String label) {
        return BlockDrawing.svg(label, List.of(), List.of(new BlockDrawing.Row("", this)));
    }

    /** Draws the heads side by side, each above the true one's. */
    public String svg(String label, BlockMask truth) {
        return BlockDrawing.svg(label, List.of(),
                List.of(new BlockDrawing.Row("predicted", this), new BlockDrawing.Row("true", truth)));
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof BlockMask mask && mask.heads == heads && mask.blocks == blocks && mask.kept.equals(kept);
    }

    @Override
    public int hashCode() {
        return 31 * (31 * heads + blocks) + kept.hashCode();
    }

    @Override
    public String toString() {
        return String.format(Locale.ROOT, "mask of %s over %s, %.1f%% kept", Counted.of(heads, "head"),
                Counted.of(blocks, "block"), 100 * keptPart());
    }
}
