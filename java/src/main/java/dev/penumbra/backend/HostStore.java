package dev.penumbra.backend;

import dev.penumbra.tensor.Tensor;
import java.util.List;

/**
 * Room in host memory for what a device's tensors hold while nobody reads them, so that others can have their memory meanwhile.
 * Copies run beside the operations that are enqueued after them, until {@link #await}.
 */
public interface HostStore {

    /**
     * Enqueues a copy of what the operations so far leave in these tensors, in place of what was stored before. They may be written
     * once it is awaited.
     *
     * @param tensors contiguous, of this store's device, together no larger than it is
     * @throws IllegalArgumentException when they are larger
     */
    void store(List<Tensor> tensors);

    /**
     * Enqueues a copy, behind the operations so far, of what was stored to tensors as large as those that it came from. They may be
     * read and written once it is awaited.
     */
    void restore(List<Tensor> tensors);

    /** Operations that are enqueued from now on run behind the last copy. */
    void await();
}
