package dev.penumbra.data;

import java.util.Arrays;
import java.util.Locale;

/**
 * How well the samples of an epoch fill its rows: those that have supervised tokens, as {@link Batches} takes them.
 *
 * @param samples samples of an epoch
 * @param tokens tokens of all samples
 * @param packed of these, the tokens that packed rows hold: what nothing is predicted from is left out
 * @param supervised tokens that are targets
 * @param rows rows that packing needs
 * @param seqLen tokens a row holds
 * @param longest tokens of the longest sample
 * @param histogram samples by length: bucket i counts lengths in (i * bucketWidth, (i + 1) * bucketWidth]
 * @param bucketWidth tokens a bucket spans
 */
public record PackingReport(
        int samples, long tokens, long packed, long supervised, int rows, int seqLen, int longest, int[] histogram,
        int bucketWidth) {

    private static final int BUCKETS = 16;

    /** Packs one epoch as {@link Batches} would with this seed. */
    public static PackingReport of(Dataset dataset, int seqLen, long seed) {
        int rows = new Batches(dataset, 1, seqLen, true, true, seed).batchesPerEpoch();
        int width = (seqLen + BUCKETS - 1) / BUCKETS;
        int[] histogram = new int[(seqLen + width - 1) / width];
        long tokens = 0;
        long packed = 0;
        long supervised = 0;
        int longest = 0;
        int samples = 0;
        for (int i = 0; i < dataset.size(); i++) {
            Sample sample = dataset.get(i);
            if (sample.supervisedCount() == 0) {
                continue;
            }
            samples++;
            tokens += sample.length();
            packed += Batches.packedLength(sample, seqLen);
            supervised += sample.supervisedCount();
            longest = Math.max(longest, sample.length());
            histogram[Math.max(0, sample.length() - 1) / width]++;
        }
        return new PackingReport(samples, tokens, packed, supervised, rows, seqLen, longest, histogram, width);
    }

    /** The part of packed rows that is filled, from 0 to 1. */
    public double efficiency() {
        return (double) packed / ((double) rows * seqLen);
    }

    /** The part of rows that is filled where each holds one sample, whole. */
    public double paddedEfficiency() {
        return (double) tokens / ((double) samples * seqLen);
    }

    /** The histogram as text, a bucket a line, with bars of at most {@code columns} characters. */
    public String histogramText(int columns) {
        int most = Math.max(1, Arrays.stream(histogram).max().orElse(1));
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < histogram.length; i++) {
            String bar = "#".repeat((int) Math.ceil((double) histogram[i] * columns / most));
            text.append(String.format(Locale.ROOT, "%5d-%-5d %7d %s%n", i * bucketWidth + 1, (i + 1) * bucketWidth,
                    histogram[i], bar));
        }
        return text.toString();
    }
}
