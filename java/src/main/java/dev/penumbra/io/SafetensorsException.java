package dev.penumbra.io;

import java.nio.file.Path;

/** A file is not what the safetensors format says. */
public final class SafetensorsException extends WeightsFileException {

    private static final long serialVersionUID = 1L;

    SafetensorsException(Path file, String message) {
        super(file, message);
    }
}
