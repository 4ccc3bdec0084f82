package dev.penumbra.io;

import java.nio.file.Path;

/** A weights file is not what its format says: the message names the file, the tensor, what was expected and found. */
public abstract sealed class WeightsFileException extends RuntimeException permits SafetensorsException, TorchFileException {

    private static final long serialVersionUID = 1L;

    WeightsFileException(Path file, String message) {
        super(file + ": " + message);
    }
}
