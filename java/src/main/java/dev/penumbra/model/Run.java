package dev.penumbra.model;

/** How a pass computes the loaded batch. */
enum Run {
    /** All of it. */
    DENSE,
    /** All of it, and the true masses of blocks are kept. */
    SENSING,
    /** By lists of blocks where there are some. */
    SPARSE
}
