package dev.penumbra.io;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** How much of a mapped file this process has in physical memory, as Linux counts it. */
public final class ResidentPages {

    private static final Path SMAPS = Path.of("/proc/self/smaps");

    private ResidentPages() {
    }

    /** Bytes of {@code file} that are resident, over all of its mappings. */
    public static long bytes(Path file) throws IOException {
        String path = file.toRealPath().toString();
        long kib = 0;
        boolean mapped = false;
        for (String line : Files.readAllLines(SMAPS)) {
            if (line.matches("\\p{XDigit}+-\\p{XDigit}+ .*")) {
                mapped = line.endsWith(path);
            } else if (mapped && line.startsWith("Rss:")) {
                kib += Long.parseLong(line.replaceAll("\\D", ""));
            }
        }
        return kib * 1024;
    }
}
