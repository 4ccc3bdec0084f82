package dev.penumbra.backend;

/** A backend refused or failed an operation; the message says what was expected, what was found, and in which operand. */
public class BackendException extends RuntimeException {

    private static final long serialVersionUID = 1;

    /** What went wrong, with the codes of the C ABI's {@code pnb_status}. */
    public enum Status {
        /** A pointer, shape, stride, dtype or value is wrong. */
        INVALID_ARGUMENT(1),
        /** Valid, but this backend does not compute it. */
        UNSUPPORTED(2),
        /** Host or device memory is exhausted. */
        OUT_OF_MEMORY(3),
        /** No such device, or its library cannot be loaded. */
        UNAVAILABLE(4),
        /** The device failed. */
        DEVICE(5),
        /** A defect of the native library. */
        INTERNAL(6);

        private final int code;

        Status(int code) {
            this.code = code;
        }

        /** The status of a {@code pnb_status} other than 0; one this version does not know is {@link #INTERNAL}. */
        public static Status of(int code) {
            for (Status status : values()) {
                if (status.code == code) {
                    return status;
                }
            }
            return INTERNAL;
        }
    }

    private final Status status;

    public BackendException(Status status, String message) {
        super(message);
        this.status = status;
    }

    public BackendException(Status status, String message, Throwable cause) {
        super(message, cause);
        this.status = status;
    }

    public Status status() {
        return status;
    }
}
