package dev.penumbra.predict;

import java.util.SplittableRandom;

/** Every order of some numbers, each as likely as another. */
final class Shuffle {

    private Shuffle() {
    }

    static void in(int[] order, SplittableRandom random) {
        for (int i = order.length - 1; i > 0; i--) {
            int other = random.nextInt(i + 1);
            int kept = order[i];
            order[i] = order[other];
            order[other] = kept;
        }
    }
}
