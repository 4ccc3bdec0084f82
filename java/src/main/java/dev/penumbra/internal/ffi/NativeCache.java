package dev.penumbra.internal.ffi;

import java.io.IOException;
import java.io.InputStream;
import java.net.JarURLConnection;
import java.net.URI;
import java.net.URISyntaxException;
import java.net.URL;
import java.net.URLConnection;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.util.jar.JarEntry;

/**
 * Files of jars, unpacked once: {@code <root>/<version>-<hash>/<name>}. The hash is the jar entry's own checksum and size, so
 * that finding a file takes no reading of its 90 MB. A file appears by an atomic move: processes that start together each
 * write their own copy, and one of them stays.
 */
final class NativeCache {

    private final Path root;
    private final String version;

    NativeCache(Path root, String version) {
        this.root = root;
        this.version = version;
    }

    Path root() {
        return root;
    }

    /** The file with the content of {@code resource}; a resource that is a file already is not copied. */
    Path file(URL resource) throws IOException {
        if (resource.getProtocol().equals("file")) {
            try {
                return Path.of(new URI(resource.toString()));
            } catch (URISyntaxException e) {
                throw new IOException("cannot read the address " + resource, e);
            }
        }
        URLConnection connection = resource.openConnection();
        if (!(connection instanceof JarURLConnection jar)) {
            throw new IOException("expected a resource in a jar or a folder, found " + resource);
        }
        JarEntry entry = jar.getJarEntry();
        String name = Path.of(entry.getName()).getFileName().toString();
        Path folder = root.resolve("%s-%08x%x".formatted(version, entry.getCrc(), entry.getSize()));
        Path file = folder.resolve(name);
        if (Files.isRegularFile(file) && Files.size(file) == entry.getSize()) {
            return file;
        }
        Files.createDirectories(folder);
        Path part = Files.createTempFile(folder, name + ".", ".part");
        try {
            try (InputStream in = connection.getInputStream()) {
                Files.copy(in, part, StandardCopyOption.REPLACE_EXISTING);
            }
            if (Files.size(part) != entry.getSize()) {
                throw new IOException("expected " + entry.getSize() + " bytes of " + name + ", found " + Files.size(part));
            }
            try (FileChannel channel = FileChannel.open(part, StandardOpenOption.WRITE)) {
                channel.force(true);
            }
            Files.move(part, file, StandardCopyOption.ATOMIC_MOVE);
        } finally {
            Files.deleteIfExists(part);
        }
        return file;
    }
}
