package dev.penumbra.expose;

import java.util.stream.IntStream;

/** What {@code pnb_select_attention} chooses for one head of one sample, on the host: for judging what masses come from. */
final class AttentionChoice {

    private AttentionChoice() {
    }

    /** Blocks on and below the diagonal. */
    static int causal(int blocks) {
        return blocks * (blocks + 1) / 2;
    }

    /** Those that are always kept: the diagonal's and those of key block 0. */
    static int always(int blocks) {
        return 2 * blocks - 1;
    }

    static boolean isAlways(int i, int j) {
        return j == 0 || i == j;
    }

    /** Most blocks that a budget lets be kept. */
    static int most(int blocks, double budget) {
        return Math.max((int) Math.floor((float) budget * (double) causal(blocks)), always(blocks));
    }

    /**
     * The blocks that are kept, [blocks, blocks].
     *
     * @param scores [blocks, blocks]; what is 0 or less is not chosen by it
     */
    static boolean[] choose(float[] scores, int blocks, double coverage, double budget) {
        boolean[] kept = new boolean[blocks * blocks];
        double total = 0;
        double covered = 0;
        for (int i = 0; i < blocks; i++) {
            for (int j = 0; j <= i; j++) {
                double mass = Math.max(0, scores[i * blocks + j]);
                total += mass;
                if (isAlways(i, j)) {
                    kept[i * blocks + j] = true;
                    covered += mass;
                }
            }
        }
        int left = most(blocks, budget) - always(blocks);
        for (int block : byFallingScore(scores, blocks)) {
            if (left == 0 || covered >= coverage * total) {
                break;
            }
            kept[block] = true;
            covered += scores[block];
            left--;
        }
        return kept;
    }

    /** Of equal ones the first comes first. */
    private static int[] byFallingScore(float[] scores, int blocks) {
        return IntStream.range(0, blocks * blocks)
                .filter(at -> at % blocks < at / blocks && at % blocks != 0 && scores[at] > 0)
                .boxed().sorted((a, b) -> Float.compare(scores[b], scores[a])).mapToInt(Integer::intValue).toArray();
    }

    /** How many blocks it takes to cover each of these parts, ascending, of the scores' sum; those count that are always kept. */
    static int[] needed(float[] scores, int blocks, double[] coverages) {
        double total = 0;
        double covered = 0;
        for (int i = 0; i < blocks; i++) {
            for (int j = 0; j <= i; j++) {
                double mass = Math.max(0, scores[i * blocks + j]);
                total += mass;
                covered += isAlways(i, j) ? mass : 0;
            }
        }
        int[] result = new int[coverages.length];
        int[] order = byFallingScore(scores, blocks);
        int taken = 0;
        for (int c = 0; c < coverages.length; c++) {
            while (taken < order.length && covered < coverages[c] * total) {
                covered += scores[order[taken++]];
            }
            result[c] = always(blocks) + taken;
        }
        return result;
    }

    static int count(boolean[] kept) {
        int count = 0;
        for (boolean one : kept) {
            count += one ? 1 : 0;
        }
        return count;
    }

    /** The sum of what is kept. */
    static double covered(float[] mass, boolean[] kept) {
        double sum = 0;
        for (int at = 0; at < kept.length; at++) {
            sum += kept[at] ? mass[at] : 0;
        }
        return sum;
    }
}
