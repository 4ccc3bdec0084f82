package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.data.Batch;
import dev.penumbra.model.BatchInputs.Input;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * The batch that a pass computes: its sizes, and its numbers on the device. Sizes are rounded up to few different ones, most of
 * all where operations are recorded; what is filled up belongs to no sample.
 */
final class LoadedBatch {

    /** Sizes of batches that recorded operations tell apart: each costs a recording, fewer cost more padding. */
    private static final int SIGNATURE_STEPS = 32;

    /** Numbers of samples that recorded operations tell apart are multiples of this. */
    static final int SIGNATURE_SAMPLES = 16;

    /** Batches without a longer sample are told apart from others: attention has kernels of their own for them. */
    private static final int SHORT_SAMPLE = 128;

    /** Of a batch's rows: where fewer are left out, all are computed. */
    private static final int LEAST_PART_LEFT_OUT = 8;

    private final Backend backend;
    private final PassShape shape;
    private final OptConfig config;
    private final boolean lossOnly;
    private final int bandRows;
    private final int capacity;
    private final BatchInputs inputs;
    private int rows;
    private int givenRows;
    private int supervised;
    private boolean leavesOut;
    private int samples;
    private int maxSeqlen;

    /**
     * @param lossOnly whether what follows the last layer's attention is computed of the rows that a loss reads only
     * @param bandRows rows of a {@link Band}
     */
    LoadedBatch(Backend backend, Buffers buffers, PassShape shape, OptConfig config, boolean lossOnly, int bandRows) {
        this.backend = backend;
        this.shape = shape;
        this.config = config;
        this.lossOnly = lossOnly;
        this.bandRows = bandRows;
        capacity = shape.capacity();
        int bands = Math.ceilDiv(capacity, bandRows);
        inputs = new BatchInputs(buffers, capacity, capacity, capacity + 1, capacity, capacity, bands,
                lossOnly ? capacity : 0, lossOnly ? capacity : 0, 1, bands);
    }

    /**
     * Uploads a batch.
     *
     * @throws IllegalArgumentException when it is empty or larger than the pass, or a sample longer
     * @throws ModelException when it has tokens or positions that the model does not
     */
    void load(Batch batch) {
        int given = batch.ids().length;
        if (given == 0 || given > shape.tokens() || batch.rows().length > capacity || batch.samples() > capacity) {
            throw new IllegalArgumentException("expected 1 to " + shape.tokens() + " tokens in a batch, found " + given);
        }
        if (batch.maxSeqlen() > shape.maxSeqlen()) {
            throw new IllegalArgumentException("expected samples of at most " + shape.maxSeqlen()
                    + " tokens, as the pass was opened for, found one of " + batch.maxSeqlen());
        }
        requireKnown(batch);
        givenRows = given;
        // Recorded operations are worth their recording when many batches share a signature: sizes are rounded up for them.
        boolean recorded = backend.isAsynchronous();
        int block = recorded ? PassShape.roundUp(Math.ceilDiv(capacity, SIGNATURE_STEPS)) : PassShape.ROW_BLOCK;
        rows = roundUp(given, block);
        samples = recorded ? roundUp(batch.samples(), SIGNATURE_SAMPLES) : batch.samples();
        maxSeqlen = recorded ? recordedMaxSeqlen(batch.maxSeqlen()) : batch.maxSeqlen();
        int valid = batch.cuSeqlens()[batch.samples()];
        // Rows up to the block's end belong to no sample; token and position 0 are as good as any.
        inputs.set(Input.IDS, Arrays.copyOf(batch.ids(), rows));
        inputs.set(Input.POSITIONS, Arrays.copyOf(batch.positions(), rows));
        inputs.set(Input.CU_SEQLENS, padded(batch.cuSeqlens(), samples + 1, valid));
        inputs.set(Input.ROWS_OF_BANDS, validRowsOfBands(rows, valid));
        setSupervised(batch, block, recorded);
        inputs.upload(backend);
    }

    private int recordedMaxSeqlen(int longest) {
        return longest <= SHORT_SAMPLE ? Math.min(SHORT_SAMPLE, shape.maxSeqlen()) : shape.maxSeqlen();
    }

    private void setSupervised(Batch batch, int block, boolean recorded) {
        int[] judged = batch.rows();
        int count = judged.length;
        // With one that no loss reads.
        int room = roundUp(count + 1, block);
        leavesOut = lossOnly && rows - room >= Math.ceilDiv(rows, LEAST_PART_LEFT_OUT);
        supervised = leavesOut ? room : recorded ? roundUp(count, block) : count;
        if (leavesOut) {
            int[] places = new int[rows];
            Arrays.fill(places, count);
            for (int i = 0; i < count; i++) {
                places[judged[i]] = i;
            }
            inputs.set(Input.PLACES, places);
            // Row 0 is as good as any where none is judged.
            inputs.set(Input.JUDGED, Arrays.copyOf(judged, room));
            inputs.set(Input.JUDGED_COUNT, new int[]{count});
            inputs.set(Input.JUDGED_OF_BANDS, validRowsOfBands(room, count));
            judged = IntStream.range(0, count).toArray();
        }
        inputs.set(Input.ROWS, padded(judged, supervised, LinearCrossEntropy.NO_ROW));
        inputs.set(Input.TARGETS, Arrays.copyOf(batch.targets(), supervised));
    }

    private int[] validRowsOfBands(int of, int valid) {
        return IntStream.range(0, Math.ceilDiv(of, bandRows))
                .map(band -> Math.clamp(valid - (long) band * bandRows, 0, bandRows)).toArray();
    }

    /** @throws IllegalStateException before the first batch */
    void requireLoaded() {
        if (rows == 0) {
            throw new IllegalStateException("expected a loaded batch, found none");
        }
    }

    /** Kernels look tokens and positions up as they are. */
    private void requireKnown(Batch batch) {
        int longest = Math.max(batch.maxSeqlen(), 1 + Arrays.stream(batch.positions()).max().orElse(0));
        if (longest > config.maxPositionEmbeddings() || Arrays.stream(batch.positions()).anyMatch(at -> at < 0)) {
            throw new ModelException("expected samples of at most " + config.maxPositionEmbeddings()
                    + " tokens, the model's positions, found one of " + longest);
        }
        config.requireTokens(batch.ids());
        config.requireTokens(batch.targets());
    }

    /** The next multiple of {@code block}, within the capacity. */
    private int roundUp(int count, int block) {
        return Math.min(capacity, Math.ceilDiv(count, block) * block);
    }

    private static int[] padded(int[] values, int length, int filler) {
        int[] padded = Arrays.copyOf(values, length);
        Arrays.fill(padded, values.length, length, filler);
        return padded;
    }

    /** Takes the sizes of the largest batch, of which nothing is there: for plans. */
    void describeLargest() {
        describeSamples(Math.ceilDiv(capacity, shape.maxSeqlen()));
        rows = capacity;
        supervised = capacity;
        leavesOut = false;
        maxSeqlen = shape.maxSeqlen();
    }

    /** As {@link #describeLargest}, of so many samples. */
    void describeSamples(int count) {
        samples = Math.min(capacity, count);
    }

    /** Rows that there is room for. */
    int capacity() {
        return capacity;
    }

    /** Rows of a {@link Band}, but for the last of a batch. */
    int bandRows() {
        return bandRows;
    }

    /** Rows that are computed: a multiple of {@link PassShape#ROW_BLOCK}, or all that there is room for. */
    int rows() {
        return rows;
    }

    /** Rows that the batch was given with. */
    int givenRows() {
        return givenRows;
    }

    /** Samples, with empty ones after the last. */
    int samples() {
        return samples;
    }

    /** No sample is longer. */
    long maxSeqlen() {
        return maxSeqlen;
    }

    /** Supervised rows, with some that are skipped after the last. */
    int supervised() {
        return supervised;
    }

    /** i32 [rows] on the device. */
    Tensor ids() {
        return inputs.get(Input.IDS).slice(0, 0, rows);
    }

    /** i32 [rows] on the device. */
    Tensor positions() {
        return inputs.get(Input.POSITIONS).slice(0, 0, rows);
    }

    /** i32 [samples + 1] on the device: the rows where samples begin, and where the last ends. */
    Tensor borders() {
        return inputs.get(Input.CU_SEQLENS).slice(0, 0, samples + 1L);
    }

    /** i32 [1] on the device: rows of the batch that are no padding. */
    Tensor validRows() {
        // Where the last sample ends.
        return inputs.get(Input.CU_SEQLENS).slice(0, samples, samples + 1L);
    }

    /** All rows. */
    RowSet all() {
        return new RowSet(rows, bandRows, validRows(), inputs.get(Input.ROWS_OF_BANDS), null, null);
    }

    /** The rows that are computed from the last layer's attention on. */
    RowSet judged() {
        return leavesOut
                ? new RowSet(supervised, bandRows, inputs.get(Input.JUDGED_COUNT).slice(0, 0, 1),
                        inputs.get(Input.JUDGED_OF_BANDS), inputs.get(Input.JUDGED).slice(0, 0, supervised),
                        inputs.get(Input.PLACES).slice(0, 0, rows))
                : all();
    }

    /** i32 [supervised] on the device: those of {@link #judged} whose output is judged. */
    Tensor supervisedRows() {
        return inputs.get(Input.ROWS).slice(0, 0, supervised);
    }

    /** i32 [supervised] on the device: what is expected there. */
    Tensor targets() {
        return inputs.get(Input.TARGETS).slice(0, 0, supervised);
    }

    /** The batch's rows of a buffer. */
    Tensor of(Tensor buffer) {
        return buffer.slice(0, 0, rows);
    }

    /** All rows. */
    Band whole() {
        return new Band(0, 0, rows);
    }
}
