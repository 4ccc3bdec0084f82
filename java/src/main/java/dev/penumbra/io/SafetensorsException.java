package dev.penumbra.io;

import java.nio.file.Path;

/** A safetensors file is not what its format says: the message names the file, the tensor, what was expected and found. */
public final class SafetensorsException extends RuntimeException {

    SafetensorsException(Path file, String message) {
        super(file + ": " + message);
    }
}
