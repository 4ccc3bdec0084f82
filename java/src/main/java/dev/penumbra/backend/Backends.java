package dev.penumbra.backend;

import dev.penumbra.internal.ffi.NativeBackend;

/** Opens backends. */
public final class Backends {

    private Backends() {
    }

    /**
     * Opens a device.
     *
     * @param threads CPU threads an operation may use; 0: as many as there are processors
     * @param deterministic equal inputs and equal threads give equal bits
     * @throws NativeLibraryException when the native library cannot be loaded
     * @throws BackendException with {@link BackendException.Status#UNAVAILABLE} when the device cannot be used
     */
    public static Backend open(Device device, int threads, boolean deterministic) {
        return NativeBackend.open(device, threads, deterministic);
    }
}
