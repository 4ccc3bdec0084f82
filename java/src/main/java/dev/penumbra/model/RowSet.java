package dev.penumbra.model;

import dev.penumbra.tensor.Tensor;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The rows that a part of a pass computes, side by side: all of the loaded batch, or those that a loss reads.
 *
 * @param rows as many as are computed
 * @param bandRows rows of a {@link Band}, but for the last
 * @param validRows i32 [1] on the device: rows that are no padding
 * @param validRowsOfBands i32 [bands] on the device: likewise of each band
 * @param sources i32 [rows] on the device: the batch's row that each is; null: all of them, in order
 * @param places i32 [the batch's rows] on the device: where each lies among these. Those that are left out are told to be one
 *     that no loss reads, so that it has no gradient either. Null as {@code sources}
 */
record RowSet(int rows, int bandRows, Tensor validRows, Tensor validRowsOfBands, @Nullable Tensor sources,
        @Nullable Tensor places) {

    /** Whether some of the batch's rows are left out. */
    boolean isPart() {
        return sources != null;
    }

    /** These rows of a buffer that has them from its start on. */
    Tensor of(Tensor buffer) {
        return buffer.slice(0, 0, rows);
    }

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

    /** i32 [1] on the device: rows of a band that are no padding. */
    Tensor validRows(Band band) {
        return validRowsOfBands.slice(0, band.index(), band.index() + 1L);
    }
}
