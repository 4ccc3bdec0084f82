package dev.penumbra.model;

import java.util.SplittableRandom;

/** How much more than its layer's coverage a list is asked for; of MLPs' blocks and of attention's alike. */
final class Tightness {

    private int steps;

    int steps() {
        return steps;
    }

    void set(int wanted) {
        steps = wanted;
    }

    /** The coverage to ask for: what is left uncovered is halved by every second step. */
    float asked(double coverage) {
        // At least a hair, for a coverage of 0 chooses nothing.
        return (float) Math.max(1e-6, 1 - (1 - coverage) * Math.pow(2, -steps / 2.0));
    }

    /** Scores of blocks that are to be chosen by chance, in (0, 1]: a score of 0 is never chosen. */
    static void draw(SplittableRandom random, float[] scores) {
        for (int i = 0; i < scores.length; i++) {
            scores[i] = (float) (1 - random.nextDouble() * 0.999);
        }
    }
}
