package dev.penumbra.data;

import dev.penumbra.internal.Counted;

/**
 * One sample: tokens, and which of them the model is taught to predict.
 *
 * @param ids the tokens, the start token included
 * @param supervised as long as ids; token i is a target where it is set. The first token is never one: nothing precedes it.
 */
public record Sample(int[] ids, boolean[] supervised) {

    public Sample {
        if (ids.length != supervised.length) {
            throw new IllegalArgumentException(
                    "expected " + ids.length + " marks, one for each token, found " + supervised.length);
        }
        if (supervised.length > 0 && supervised[0]) {
            throw new IllegalArgumentException("expected a first token that is not supervised: no token precedes it");
        }
    }

    public int length() {
        return ids.length;
    }

    /** Tokens that something is predicted from: those before the last supervised one. */
    public int readLength() {
        int last = supervised.length - 1;
        while (last > 0 && !supervised[last]) {
            last--;
        }
        return Math.max(last, 0);
    }

    public int supervisedCount() {
        int count = 0;
        for (boolean target : supervised) {
            count += target ? 1 : 0;
        }
        return count;
    }

    @Override
    public String toString() {
        return "sample of " + Counted.of(length(), "token") + ", " + supervisedCount() + " supervised";
    }
}
