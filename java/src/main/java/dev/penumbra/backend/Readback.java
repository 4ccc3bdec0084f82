package dev.penumbra.backend;

/** A few numbers on their way from a device to the host. */
public interface Readback {

    /** Whether {@link #floats} would return at once. */
    boolean isDone();

    /** The values, in row-major order; waits for what was enqueued before the read. */
    float[] floats();
}
