package dev.penumbra.internal;

/** Things by their number, for messages: 1 step, 2 steps. */
public final class Counted {

    private Counted() {
    }

    /** @param one the word for one of them, whose plural ends in s */
    public static String of(long count, String one) {
        return count + " " + one + (count == 1 ? "" : "s");
    }
}
