package dev.penumbra.internal.ffi;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.internal.ffi.penumbra.Penumbra;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Optional;

/**
 * A {@code pnb_weight}. It ends with the arena it was packed into, or with its backend, whichever comes first: the native
 * side forbids a weight that outlives its context.
 */
final class NativeWeight implements FrozenWeight {

    private final Form form;
    private final NativeBackend backend;
    private final MemorySegment handle;
    private final Tensor storage;
    private boolean destroyed;

    /**
     * {@code owner} must already hold the weight's {@code storage}, so that closing it frees the storage last. The storage of
     * a planned weight is planned.
     */
    NativeWeight(NativeBackend backend, Arena owner, Form form, MemorySegment pointer, Tensor storage) {
        this.form = form;
        this.backend = backend;
        this.storage = storage;
        this.handle = pointer.reinterpret(owner, freed -> backend.forget(this, freed));
    }

    @Override
    public Form form() {
        return form;
    }

    /** On CUDA a weight lies as it is, its rows rounded up to 16 bytes. */
    @Override
    public Optional<Tensor> rows() {
        long rowBytes = form.in() * form.dtype().byteSize();
        if (backend.device().isHost() || rowBytes % 16 != 0) {
            return Optional.empty();
        }
        return Optional.of(storage.slice(0, 0, form.out() * rowBytes).as(form.dtype()).reshape(form.out(), form.in()));
    }

    /** The pointer for a call of {@code caller}, after a check that it is still good. */
    synchronized MemorySegment pointerFor(NativeBackend caller) {
        if (caller != backend) {
            throw new IllegalArgumentException(
                    "expected a weight that this backend packed, found another backend's " + this);
        }
        if (destroyed || !handle.scope().isAlive()) {
            throw new IllegalStateException("expected an open owner: this " + this + " was closed");
        }
        return handle;
    }

    /** Frees the native object once. The arena's cleanup and the backend's close may both come here. */
    synchronized void destroy(MemorySegment pointer) {
        if (!destroyed) {
            destroyed = true;
            Penumbra.pnb_weight_destroy(pointer);
        }
    }

    void destroy() {
        destroy(MemorySegment.ofAddress(handle.address()));
    }

    @Override
    public String toString() {
        return "weight " + form.dtype() + "[" + form.out() + ", " + form.in() + "]";
    }
}
