package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;

/** The numbers that a batch brings to the device: arrays side by side, so that one copy brings all of them. */
final class BatchInputs {

    enum Input {
        IDS, POSITIONS, CU_SEQLENS, ROWS, TARGETS, ROWS_OF_BANDS, JUDGED, PLACES, JUDGED_COUNT, JUDGED_OF_BANDS
    }

    /** Of an array's start, in numbers: 256 bytes, as memory of its own would have. */
    private static final int ALIGNMENT = 64;

    private final Tensor device;
    private final Tensor staged;
    private final int[] starts = new int[Input.values().length + 1];
    private final int[] sizes;

    /** @param sizes of the arrays, in the order of {@link Input} */
    BatchInputs(Buffers buffers, int... sizes) {
        if (sizes.length != Input.values().length) {
            throw new IllegalArgumentException(
                    "expected " + Input.values().length + " sizes, one of each array, found " + sizes.length);
        }
        this.sizes = sizes.clone();
        for (int i = 0; i < sizes.length; i++) {
            starts[i + 1] = starts[i] + Math.ceilDiv(sizes[i], ALIGNMENT) * ALIGNMENT;
        }
        int size = starts[sizes.length];
        device = buffers.allocate(MemoryPlan.Kind.ACTIVATIONS, "inputs", DType.I32, size);
        staged = buffers.stage("staged inputs", DType.I32, size);
    }

    Tensor get(Input input) {
        return of(device, input);
    }

    private Tensor of(Tensor all, Input input) {
        return all.slice(0, starts[input.ordinal()], starts[input.ordinal() + 1]);
    }

    /** Sets the first numbers of an array for the next {@link #upload}. */
    void set(Input input, int[] values) {
        if (values.length > sizes[input.ordinal()]) {
            throw new IllegalArgumentException(
                    "expected at most " + sizes[input.ordinal()] + " " + input + " of a batch, found " + values.length);
        }
        if (values.length > 0) {
            of(staged, input).slice(0, 0, values.length).copyFrom(values);
        }
    }

    void upload(Backend backend) {
        backend.upload(staged, device);
    }
}
