package dev.penumbra.internal.ffi;

import dev.penumbra.backend.BackendException;
import dev.penumbra.internal.ffi.penumbra.Penumbra;

/** The one place where a {@code pnb_status} becomes an exception. */
final class NativeStatus {

    private NativeStatus() {
    }

    /** Throws what the latest call on this thread reported, unless it reported success. */
    static void check(int status) {
        if (status != Penumbra.PNB_OK()) {
            throw new BackendException(BackendException.Status.of(status), Penumbra.pnb_last_error().getString(0));
        }
    }
}
