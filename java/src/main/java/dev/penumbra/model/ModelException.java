package dev.penumbra.model;

/** A model that cannot be loaded or run as asked; the message names the file or tensor, what was expected and what was found. */
public class ModelException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    public ModelException(String message) {
        super(message);
    }

    public ModelException(String message, Throwable cause) {
        super(message, cause);
    }
}
