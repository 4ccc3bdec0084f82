package dev.penumbra.predict;

import java.util.Arrays;
import java.util.SplittableRandom;

/**
 * Layouts of attention blocks that know nothing of the text, as tables [heads, width, width] of masses: what is kept always,
 * a block's own keys and the first block's, needs none.
 *
 * <p>A layout is for samples of every length up to {@code width} blocks: a shorter sample has its upper left part. Where a
 * budget bounds it, masses fall in the order in which the layout grows, so that every sample's part fits its own budget.
 */
public final class AttentionLayouts {

    /** BigBird's internal transformer construction: first blocks that all see, ... */
    private static final int GLOBAL_BLOCKS = 2;
    /** ... a window of three blocks, of which one lies before a query's own ... */
    private static final int WINDOW_BEFORE = 1;
    /** ... and blocks drawn for each block of queries. */
    private static final int RANDOM_BLOCKS = 3;
    /** Longformer's window over a language model's past, in tokens. */
    private static final int LONGFORMER_WINDOW = 512;

    private AttentionLayouts() {
    }

    /** Everything. */
    public static float[] all(int heads, int width) {
        float[] table = new float[heads * width * width];
        Arrays.fill(table, 1);
        return table;
    }

    /**
     * BigBird's (Zaheer et al., 2020): the first blocks, a window, and random blocks, drawn once for each head.
     *
     * @param bounded whether a budget says how many blocks are drawn; else as many as the paper's
     */
    public static float[] bigBird(int heads, int width, boolean bounded, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        float[] table = new float[heads * width * width];
        for (int h = 0; h < heads; h++) {
            for (int i = 0; i < width; i++) {
                int row = (h * width + i) * width;
                int[] drawn = shuffled(Math.max(0, i - WINDOW_BEFORE - GLOBAL_BLOCKS), random);
                for (int j = 0; j <= i; j++) {
                    double spread = random.nextDouble() * 0.999;
                    if (i - j <= WINDOW_BEFORE) {
                        table[row + j] = (float) (3 + spread);
                    } else if (j < GLOBAL_BLOCKS) {
                        table[row + j] = (float) (2 + spread);
                    } else if (bounded) {
                        table[row + j] = (float) (1 - spread);
                    }
                }
                for (int n = 0; n < Math.min(RANDOM_BLOCKS, drawn.length) && !bounded; n++) {
                    table[row + GLOBAL_BLOCKS + drawn[n]] = 1;
                }
            }
        }
        return table;
    }

    private static int[] shuffled(int count, SplittableRandom random) {
        int[] order = new int[count];
        for (int i = 0; i < count; i++) {
            int other = random.nextInt(i + 1);
            order[i] = order[other];
            order[other] = i;
        }
        return order;
    }

    /**
     * Longformer's (Beltagy et al., 2020): the first block, which all see, and a window.
     *
     * @param bounded whether a budget says how wide the window is; else as wide as the paper's
     */
    public static float[] longformer(int heads, int width, int blockSize, boolean bounded, long seed) {
        SplittableRandom random = new SplittableRandom(seed);
        int before = LONGFORMER_WINDOW / blockSize;
        float[] table = new float[heads * width * width];
        for (int h = 0; h < heads; h++) {
            for (int i = 0; i < width; i++) {
                for (int j = 0; j <= i; j++) {
                    // Diagonals by their distance; what a budget cuts off of the last is spread over it.
                    double distance = i - j + 0.999 * random.nextDouble();
                    if (bounded || i - j <= before) {
                        table[(h * width + i) * width + j] = (float) (1 / (1 + distance));
                    }
                }
            }
        }
        return table;
    }
}
