package dev.penumbra.io;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.channels.FileLock;
import java.nio.channels.OverlappingFileLockException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/**
 * Holds an output folder for one run, and clears away what a killed run has left in it. The system gives the lock back when
 * the process ends, however it ends.
 */
public final class RunLock implements AutoCloseable {

    private static final String NAME = ".lock";

    private final Path folder;
    private final FileChannel channel;

    private RunLock(Path folder, FileChannel channel) {
        this.folder = folder;
        this.channel = channel;
    }

    /**
     * Takes {@code folder}, which is made when it is missing.
     *
     * @throws IOException when another run holds it, or when it cannot be written
     */
    public static RunLock acquire(Path folder) throws IOException {
        FileChannel channel;
        try {
            Files.createDirectories(folder);
            channel = FileChannel.open(folder.resolve(NAME), StandardOpenOption.CREATE, StandardOpenOption.WRITE);
        } catch (IOException failure) {
            throw AtomicFiles.unwritable(folder, failure);
        }
        FileLock lock = null;
        try {
            lock = channel.tryLock();
        } catch (OverlappingFileLockException heldByThisProcess) {
            // The message below says it.
        } catch (IOException failure) {
            throw AtomicFiles.unwritable(folder, failure);
        } finally {
            if (lock == null) {
                channel.close();
            }
        }
        if (lock == null) {
            throw new IOException(folder + ": expected a folder that no other run writes to, found one that holds it");
        }
        try {
            AdapterFiles.complete(folder);
            AtomicFiles.removeStale(folder);
        } catch (IOException | RuntimeException failure) {
            channel.close();
            throw failure;
        }
        return new RunLock(folder, channel);
    }

    /** As it was given. */
    public Path folder() {
        return folder;
    }

    /** Gives the folder back; the empty lock file stays, since removing it would race with the next run. */
    @Override
    public void close() throws IOException {
        channel.close();
    }
}
