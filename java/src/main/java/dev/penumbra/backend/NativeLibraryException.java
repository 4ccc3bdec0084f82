package dev.penumbra.backend;

/** The native library could not be loaded; the message says what was tried and what each attempt found. */
public final class NativeLibraryException extends BackendException {

    private static final long serialVersionUID = 1;

    public NativeLibraryException(String message) {
        super(Status.UNAVAILABLE, message);
    }

    public NativeLibraryException(String message, Throwable cause) {
        super(Status.UNAVAILABLE, message, cause);
    }
}
