package dev.penumbra.io;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;

/** Writing such that a reader, or a crash at any moment, sees either the old file or the new one. */
public final class AtomicFiles {

    private AtomicFiles() {
    }

    /** Writes to a path it is given. */
    @FunctionalInterface
    public interface Writer {
        void writeTo(Path path) throws IOException;
    }

    /** Lets {@code writer} write a file beside {@code target}, forces it to the disk and moves it into place. */
    public static void write(Path target, Writer writer) throws IOException {
        Path folder = target.toAbsolutePath().getParent();
        Files.createDirectories(folder);
        Path beside = Files.createTempFile(folder, "." + target.getFileName(), ".part");
        try {
            writer.writeTo(beside);
            force(beside);
            Files.move(beside, target, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
            force(folder);
        } finally {
            Files.deleteIfExists(beside);
        }
    }

    public static void writeString(Path target, String text) throws IOException {
        write(target, path -> Files.writeString(path, text));
    }

    /** Forces a file's bytes, or a folder's names, to the disk. */
    private static void force(Path path) throws IOException {
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
            channel.force(true);
        }
    }
}
