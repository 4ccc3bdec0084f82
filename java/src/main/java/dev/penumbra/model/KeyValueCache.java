package dev.penumbra.model;

/** Keys and values of one sample, so that each further token costs one row. */
public interface KeyValueCache {

    /** Tokens fed so far. */
    int length();

    int capacity();

    /** Feeds tokens after those so far; returns the logits [vocab] that follow the last. */
    float[] feed(int[] ids);

    /** Forgets all tokens. */
    void clear();
}
