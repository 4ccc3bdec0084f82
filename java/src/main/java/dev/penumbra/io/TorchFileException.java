package dev.penumbra.io;

import java.nio.file.Path;

/** A file is not a dictionary of tensors as {@code torch.save} writes it. */
public final class TorchFileException extends WeightsFileException {

    private static final long serialVersionUID = 1L;

    TorchFileException(Path file, String message) {
        super(file, message);
    }
}
