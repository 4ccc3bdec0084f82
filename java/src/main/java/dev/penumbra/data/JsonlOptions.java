package dev.penumbra.data;

/**
 * How lines become samples.
 *
 * @param seqLen the longest sample, in tokens; a plain text that is longer becomes several
 * @param truncate cut others that are longer instead of refusing them
 * @param lossOn which tokens are supervised
 * @param vocabSize tokens given as numbers must be below this
 */
public record JsonlOptions(int seqLen, boolean truncate, LossOn lossOn, int vocabSize) {

    public JsonlOptions {
        if (seqLen < 2) {
            throw new IllegalArgumentException("expected a length of 2 tokens or more, found " + seqLen);
        }
    }

    /** Which tokens the loss is taken over. */
    public enum LossOn {
        /** The completion and its end token; a plain text is all completion. */
        COMPLETION,
        /** Every token but the first. */
        ALL
    }
}
