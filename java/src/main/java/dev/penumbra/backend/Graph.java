package dev.penumbra.backend;

/** Recorded operations, enqueued all at once; they read and write the tensors that were recorded. */
public interface Graph {

    void launch();
}
