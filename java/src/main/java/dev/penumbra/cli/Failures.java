package dev.penumbra.cli;

import dev.penumbra.backend.BackendException;
import dev.penumbra.data.DataException;
import dev.penumbra.expose.CalibrationException;
import dev.penumbra.io.WeightsFileException;
import dev.penumbra.model.ModelException;
import dev.penumbra.train.TrainingException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.NoSuchFileException;

/** What a failure says to a person. */
final class Failures {

    private Failures() {
    }

    /** Whether the message says what was expected and found; anything else is a defect, and its trace is wanted. */
    static boolean isExplained(Exception failure) {
        return failure instanceof IOException
                || failure instanceof UncheckedIOException
                || failure instanceof TrainingException
                || failure instanceof ModelException
                || failure instanceof DataException
                || failure instanceof CalibrationException
                || failure instanceof WeightsFileException
                || failure instanceof BackendException
                || failure instanceof JshellScript.Failed
                || failure instanceof IllegalArgumentException;
    }

    /** The system's own failures name a file and little else. */
    static String message(Exception failure) {
        Throwable told = failure instanceof UncheckedIOException ? failure.getCause() : failure;
        if (told instanceof FileSystemException system && system.getReason() == null) {
            String found = switch (system) {
                case NoSuchFileException missing -> "expected a file, found none";
                case AccessDeniedException denied -> "expected to be allowed to read and write, found no permission";
                case FileAlreadyExistsException exists -> "expected a folder, found a file";
                default -> system.getClass().getSimpleName();
            };
            return system.getFile() + ": " + found;
        }
        return told.getMessage() == null ? told.toString() : told.getMessage();
    }
}
