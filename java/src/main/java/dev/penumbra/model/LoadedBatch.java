package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.data.Batch;
import dev.penumbra.model.BatchInputs.Input;
import dev.penumbra.tensor.Tensor;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * The batch that a pass computes: its sizes, and its numbers on the device. Sizes are rounded up to few different ones, most of
 * all where operations are recorded; what is filled up belongs to no sample.
 */
final class LoadedBatch {

    /** Sizes of batches that recorded operations tell apart: each costs a recording, fewer cost more padding. */
    private static final int SIGNATURE_STEPS = 32;

    /** Numbers of samples that recorded operations tell apart are multiples of this. */
    static final int SIGNATURE_SAMPLES = 16;

    private final Backend backend;
    private final PassShape shape;
    private final OptConfig config;
    private final int bandRows;
    private final int capacity;
    private final BatchInputs inputs;
    private int rows;
    private int givenRows;
    private int supervised;
    private int samples;
    private int maxSeqlen;

    /** @param bandRows rows of a {@link Band} */
    LoadedBatch(Backend backend, Buffers buffers, PassShape shape, OptConfig config, int bandRows) {
        this.backend = backend;
        this.shape = shape;
        this.config = config;
        this.bandRows = bandRows;
        capacity = shape.capacity();
        inputs = new BatchInputs(buffers, capacity, capacity, capacity + 1, capacity, capacity,
                Math.ceilDiv(capacity, bandRows));
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
        supervised = recorded ? roundUp(batch.rows().length, block) : batch.rows().length;
        samples = recorded ? roundUp(batch.samples(), SIGNATURE_SAMPLES) : batch.samples();
        maxSeqlen = recorded ? Math.max(shape.maxSeqlen(), batch.maxSeqlen()) : batch.maxSeqlen();
        int valid = batch.cuSeqlens()[batch.samples()];
        // Rows up to the block's end belong to no sample; token and position 0 are as good as any.
        inputs.set(Input.IDS, Arrays.copyOf(batch.ids(), rows));
        inputs.set(Input.POSITIONS, Arrays.copyOf(batch.positions(), rows));
        inputs.set(Input.CU_SEQLENS, padded(batch.cuSeqlens(), samples + 1, valid));
        inputs.set(Input.ROWS, padded(batch.rows(), supervised, LinearCrossEntropy.NO_ROW));
        inputs.set(Input.TARGETS, Arrays.copyOf(batch.targets(), supervised));
        inputs.set(Input.ROWS_OF_BANDS,
                bands().stream().mapToInt(band -> Math.clamp(valid - (long) band.from(), 0, bandRows)).toArray());
        inputs.upload(backend);
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

    /** i32 [1] on the device: rows of a band that are no padding. */
    Tensor validRows(Band band) {
        return inputs.get(Input.ROWS_OF_BANDS).slice(0, band.index(), band.index() + 1L);
    }

    /** i32 [supervised] on the device: the rows whose output is judged. */
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

    /** The rows in parts, each of at most as many as a dense MLP has room for. */
    List<Band> bands() {
        List<Band> bands = new ArrayList<>();
        for (int from = 0; from < rows; from += bandRows) {
            bands.add(new Band(bands.size(), from, Math.min(rows, from + bandRows)));
        }
        return bands;
    }
}
