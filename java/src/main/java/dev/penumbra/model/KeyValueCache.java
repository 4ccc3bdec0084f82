package dev.penumbra.model;

/** Keys and values of one sample, so that each further token costs one row. */
public interface KeyValueCache {

    /** Tokens fed so far. */
    int length();

    /** Most tokens. */
    int capacity();

    /**
     * Feeds tokens after those so far; returns the logits [vocab] that follow the last.
     *
     * @throws ModelException when there is none or no room for all, or one is not of the vocabulary
     */
    float[] feed(int[] ids);

    /** Forgets all tokens. */
    void clear();
}
