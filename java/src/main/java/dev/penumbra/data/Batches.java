package dev.penumbra.data;

import dev.penumbra.internal.Counted;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import java.util.SplittableRandom;
import java.util.stream.IntStream;

/**
 * The micro-batches of a run, epoch after epoch. Samples of which nothing is supervised teach nothing and are in none, so that
 * every row has something to learn. The order follows from the seed and the epoch alone, so a position
 * (epoch, batch) is all that a resumed run needs.
 */
public final class Batches {

    /**
     * Samples looked at together when rows are filled. The last row of a window is left part empty: with rows of a dozen
     * samples, 2048 keep that loss under one hundredth, and the search for a fitting row stays far below a step's time.
     */
    private static final int WINDOW = 2048;

    /**
     * Fills rows up to the batch's longest. Any token of the vocabulary does: padding follows its sample, where causal
     * attention hides it from every token before, and no padding is a target, so it reaches neither loss nor gradient.
     */
    private static final int PADDING = 0;

    private final Dataset dataset;
    private final int batchRows;
    private final int seqLen;
    private final boolean pack;
    private final boolean shuffle;
    private final long seed;
    /** Those that have supervised tokens. */
    private final int[] samples;

    private int epoch;
    private int index;
    private List<List<List<Integer>>> plan;

    /**
     * @param batchRows rows of a micro-batch
     * @param seqLen the longest row, in tokens
     * @param pack several samples a row, each without the tokens that nothing is predicted from, instead of one sample a row
     *     padded to the batch's longest
     * @param shuffle every epoch in another order, instead of all in the data set's
     * @throws DataException when there is no sample, none is supervised, or one is longer than {@code seqLen}
     */
    public Batches(Dataset dataset, int batchRows, int seqLen, boolean pack, boolean shuffle, long seed) {
        if (batchRows < 1 || seqLen < 2) {
            throw new IllegalArgumentException(
                    "expected rows of 1 or more and a length of 2 or more, found " + batchRows + " x " + seqLen);
        }
        if (dataset.size() == 0) {
            throw new DataException("expected samples, found an empty data set");
        }
        for (int i = 0; i < dataset.size(); i++) {
            if (dataset.get(i).length() > seqLen) {
                throw new DataException(
                        dataset.describe(i) + ": expected at most " + seqLen + " tokens, found " + dataset.get(i).length());
            }
        }
        samples = IntStream.range(0, dataset.size()).filter(i -> dataset.get(i).supervisedCount() > 0).toArray();
        if (samples.length == 0) {
            throw new DataException("expected supervised tokens, found none in " + Counted.of(dataset.size(), "sample"));
        }
        this.dataset = dataset;
        this.batchRows = batchRows;
        this.seqLen = seqLen;
        this.pack = pack;
        this.shuffle = shuffle;
        this.seed = seed;
        this.plan = plan(0);
    }

    public int epoch() {
        return epoch;
    }

    /** Index, within the epoch, of the batch that {@link #next} gives next. */
    public int index() {
        return index;
    }

    /** Micro-batches of the current epoch. */
    public int batchesPerEpoch() {
        return plan.size();
    }

    /** Micro-batches of an epoch: of one window of samples always as many, of more it depends on which come together. */
    public int batchesIn(int ofEpoch) {
        return ofEpoch == epoch || !pack || !shuffle || samples.length <= WINDOW ? plan.size() : plan(ofEpoch).size();
    }

    /** Goes to a position that {@link #epoch} and {@link #index} told. */
    public void seek(int toEpoch, int toIndex) {
        if (toEpoch != epoch) {
            epoch = toEpoch;
            plan = plan(toEpoch);
        }
        if (toIndex < 0 || toIndex > plan.size()) {
            throw new IllegalArgumentException(
                    "expected a batch in [0, " + plan.size() + "] of epoch " + toEpoch + ", found " + toIndex
                            + ": were the data changed?");
        }
        index = toIndex;
    }

    /** The next micro-batch; after an epoch's last comes the next epoch's first. */
    public Batch next() {
        if (index == plan.size()) {
            seek(epoch + 1, 0);
        }
        return assemble(plan.get(index++));
    }

    /** The batches of one epoch: batch, row, sample. */
    private List<List<List<Integer>>> plan(int ofEpoch) {
        SplittableRandom random = new SplittableRandom(seed * 0x9E3779B97F4A7C15L + ofEpoch);
        int[] order = samples.clone();
        if (shuffle) {
            for (int i = order.length - 1; i > 0; i--) {
                int other = random.nextInt(i + 1);
                int kept = order[i];
                order[i] = order[other];
                order[other] = kept;
            }
        }
        List<List<Integer>> rows = new ArrayList<>();
        if (pack) {
            for (int from = 0; from < order.length; from += WINDOW) {
                List<List<Integer>> filled = fill(Arrays.copyOfRange(order, from, Math.min(order.length, from + WINDOW)));
                if (shuffle) {
                    // Rows are opened longest sample first; trained in that order, an epoch would drift from long to short.
                    Collections.shuffle(filled, Random.from(random));
                }
                rows.addAll(filled);
            }
        } else {
            for (int sample : order) {
                rows.add(List.of(sample));
            }
        }
        List<List<List<Integer>>> batches = new ArrayList<>();
        for (int from = 0; from < rows.size(); from += batchRows) {
            batches.add(rows.subList(from, Math.min(rows.size(), from + batchRows)));
        }
        return batches;
    }

    /**
     * Tokens of a sample in a packed row. What follows its last prediction is seen by no other token, so that neither loss nor
     * gradient knows of it. A sample that fills its row stays whole: kernels are faster where all samples are equally long.
     */
    static int packedLength(Sample sample, int seqLen) {
        return sample.length() == seqLen ? seqLen : sample.readLength();
    }

    private int packedLength(int sample) {
        return packedLength(dataset.get(sample), seqLen);
    }

    /** First fit, longest samples first; rows keep the order in which they were opened. */
    private List<List<Integer>> fill(int[] samples) {
        List<Integer> longestFirst = new ArrayList<>();
        for (int sample : samples) {
            longestFirst.add(sample);
        }
        longestFirst.sort((left, right) -> Integer.compare(packedLength(right), packedLength(left)));
        List<List<Integer>> rows = new ArrayList<>();
        List<Integer> free = new ArrayList<>();
        for (int sample : longestFirst) {
            int length = packedLength(sample);
            int row = 0;
            while (row < rows.size() && free.get(row) < length) {
                row++;
            }
            if (row == rows.size()) {
                rows.add(new ArrayList<>());
                free.add(seqLen);
            }
            rows.get(row).add(sample);
            free.set(row, free.get(row) - length);
        }
        return rows;
    }

    private Batch assemble(List<List<Integer>> rows) {
        int longest = 0;
        int packed = 0;
        int total = 0;
        int samples = 0;
        int supervised = 0;
        for (List<Integer> row : rows) {
            for (int sample : row) {
                Sample s = dataset.get(sample);
                longest = Math.max(longest, pack ? packedLength(sample) : s.length());
                packed += packedLength(sample);
                total += s.length();
                samples++;
                supervised += s.supervisedCount();
            }
        }
        int width = pack ? packed : rows.size() * longest;
        int[] ids = new int[width];
        int[] positions = new int[width];
        int[] cuSeqlens = new int[samples + 1];
        int[] supervisedRows = new int[supervised];
        int[] targets = new int[supervised];
        int at = 0;
        int sampleCount = 0;
        int targetCount = 0;
        for (List<Integer> row : rows) {
            for (int sample : row) {
                Sample s = dataset.get(sample);
                int span = pack ? packedLength(sample) : longest;
                for (int i = 0; i < span; i++) {
                    ids[at + i] = i < s.length() ? s.ids()[i] : PADDING;
                    positions[at + i] = i;
                }
                for (int i = 1; i < s.length(); i++) {
                    if (s.supervised()[i]) {
                        supervisedRows[targetCount] = at + i - 1;
                        targets[targetCount++] = s.ids()[i];
                    }
                }
                at += span;
                cuSeqlens[++sampleCount] = at;
            }
        }
        return new Batch(ids, positions, cuSeqlens, supervisedRows, targets, longest, total);
    }
}
