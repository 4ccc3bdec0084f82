package dev.penumbra.io;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.AccessDeniedException;
import java.nio.file.FileAlreadyExistsException;
import java.nio.file.FileSystemException;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.Comparator;
import java.util.List;
import java.util.UUID;
import java.util.stream.Stream;

/**
 * Writing such that a reader, or a crash at any moment, sees either the old or the new. What is being written has a hidden
 * name that ends in {@code .part}; a crash leaves it, and {@link RunLock} takes it away.
 */
public final class AtomicFiles {

    private static final String PART = ".part";
    private static final String PREVIOUS = ".old";

    private AtomicFiles() {
    }

    /** Writes to a path it is given. */
    @FunctionalInterface
    public interface Writer {
        void writeTo(Path path) throws IOException;
    }

    /**
     * Lets {@code writer} write a file beside {@code target}, forces it to the disk and moves it into place.
     *
     * @throws IOException naming the target, which is as it was
     */
    public static void write(Path target, Writer writer) throws IOException {
        Path beside = beside(target);
        try {
            Files.createDirectories(beside.getParent());
            try {
                Files.createFile(beside);
                writer.writeTo(beside);
                force(beside);
                move(beside, target);
                force(beside.getParent());
            } finally {
                Files.deleteIfExists(beside);
            }
        } catch (IOException failure) {
            throw unwritable(target, failure);
        }
    }

    public static void writeString(Path target, String text) throws IOException {
        write(target, path -> Files.writeString(path, text));
    }

    /**
     * Lets {@code writer} fill a folder beside {@code target} and moves it into place, where it replaces the folder
     * {@code target}. The writer forces its files to the disk itself.
     *
     * <p>Folders cannot be exchanged at once: the old one is called {@link #previous} from before the new one has its name
     * until after. A crash between leaves only that.
     *
     * @throws IOException naming the target, which is as it was
     */
    public static void writeFolder(Path target, Writer writer) throws IOException {
        stage(target, folder -> {
            writer.writeTo(folder);
            force(folder);
            Path previous = previous(target);
            if (Files.exists(target)) {
                deleteTree(previous);
                move(target, previous);
            }
            move(folder, target);
            force(folder.getParent());
            deleteTree(previous);
        });
    }

    /** Where the folder that {@link #writeFolder} replaces is while it does. */
    public static Path previous(Path target) {
        return target.resolveSibling("." + target.getFileName() + PREVIOUS);
    }

    /** Gives {@code writer} an empty folder beside {@code target}, and deletes it after unless it was moved. */
    static void stage(Path target, Writer writer) throws IOException {
        Path beside = beside(target);
        try {
            Files.createDirectories(beside);
            try {
                writer.writeTo(beside);
            } finally {
                deleteTree(beside);
            }
        } catch (IOException failure) {
            throw unwritable(target, failure);
        }
    }

    /**
     * Checks, before long work whose result goes to {@code target}, that a file can be written there.
     *
     * @throws IOException naming the target
     */
    public static void requireWritable(Path target) throws IOException {
        Path beside = beside(target);
        try {
            Files.createDirectories(beside.getParent());
            Files.createFile(beside);
            Files.delete(beside);
        } catch (IOException failure) {
            throw unwritable(target, failure);
        }
    }

    /** Removes what writers that were killed have left in {@code folder}. Nobody may be writing there. */
    static void removeStale(Path folder) throws IOException {
        for (Path path : list(folder)) {
            String name = path.getFileName().toString();
            boolean replaced = name.endsWith(PREVIOUS)
                    && Files.exists(folder.resolve(name.substring(1, name.length() - PREVIOUS.length())));
            if (name.startsWith(".") && (name.endsWith(PART) || replaced)) {
                deleteTree(path);
            }
        }
    }

    /** A hidden path beside {@code target} that nobody else uses. */
    private static Path beside(Path target) {
        Path absolute = target.toAbsolutePath();
        return absolute.resolveSibling("." + absolute.getFileName() + "." + UUID.randomUUID() + PART);
    }

    static void move(Path from, Path to) throws IOException {
        Files.move(from, to, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    }

    /** Forces a file's bytes, or a folder's names, to the disk. */
    static void force(Path path) throws IOException {
        try (FileChannel channel = FileChannel.open(path, StandardOpenOption.READ)) {
            channel.force(true);
        }
    }

    /** Deletes a file, or a folder with all that is in it; nothing when there is none. */
    static void deleteTree(Path path) throws IOException {
        if (Files.exists(path)) {
            try (Stream<Path> tree = Files.walk(path)) {
                for (Path each : tree.sorted(Comparator.reverseOrder()).toList()) {
                    Files.deleteIfExists(each);
                }
            }
        }
    }

    static List<Path> list(Path folder) throws IOException {
        try (Stream<Path> listed = Files.list(folder)) {
            return listed.sorted().toList();
        }
    }

    /** Says what the system said first, under the name that the caller knows. */
    static IOException unwritable(Path target, IOException failure) {
        IOException first = failure;
        while (first.getCause() instanceof IOException cause) {
            first = cause;
        }
        String found = first.getMessage();
        if (first instanceof FileSystemException system) {
            String reason = switch (system) {
                case FileAlreadyExistsException taken -> "a file where a folder is to be";
                case NoSuchFileException missing -> "no such folder";
                case AccessDeniedException denied -> "no permission";
                default -> system.getReason() == null ? system.getClass().getSimpleName() : system.getReason();
            };
            String file = system.getFile();
            // What is written beside the target has a name that says nothing to anybody.
            found = reason + ": " + (file != null && file.endsWith(PART) ? Path.of(file).getParent() : file);
        }
        return new IOException(target + ": expected to write it, found: " + found, failure);
    }
}
