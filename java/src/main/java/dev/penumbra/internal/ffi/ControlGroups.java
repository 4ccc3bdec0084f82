package dev.penumbra.internal.ffi;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.OptionalLong;

/**
 * What a process's control groups leave it of the memory. A container's limit is one of them: /proc/meminfo tells of the whole
 * machine there, and who takes more than the limit is killed. (The JVM's own figure counts cached pages of files, such as a mapped
 * checkpoint's, as taken.)
 */
final class ControlGroups {

    /**
     * How a version of the interface calls what is read here.
     *
     * @param cache the line of memory.stat that counts files' pages which the kernel takes back first
     */
    private record Names(String limit, String used, String cache) {
    }

    private static final Names V1 = new Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
    private static final Names V2 = new Names("memory.max", "memory.current", "inactive_file");

    private ControlGroups() {
    }

    /** Bytes below this process's lowest limit; empty where there is none, or nothing is known. */
    static OptionalLong freeBytes() {
        try {
            return freeBytes(Path.of("/sys/fs/cgroup"), Files.readAllLines(Path.of("/proc/self/cgroup")));
        } catch (IOException unknown) {
            return OptionalLong.empty();
        }
    }

    /**
     * @param mounted where groups are mounted
     * @param groups lines of /proc/self/cgroup: {@code id:controllers:path}, version 2 without controllers
     */
    static OptionalLong freeBytes(Path mounted, List<String> groups) {
        OptionalLong lowest = OptionalLong.empty();
        for (String line : groups) {
            String[] parts = line.split(":", 3);
            boolean second = parts.length == 3 && parts[1].isEmpty();
            if (!second && (parts.length < 3 || !Arrays.asList(parts[1].split(",")).contains("memory"))) {
                continue;
            }
            Path top = second ? mounted : mounted.resolve("memory");
            // Each group is within its parent's limit too. A container may see its own as the top, whatever its path.
            for (Path group = top.resolve(parts[2].replaceFirst("^/+", "")).normalize(); group.startsWith(top); group = group
                    .getParent()) {
                OptionalLong free = freeBytes(group, second ? V2 : V1);
                if (free.isPresent() && (lowest.isEmpty() || free.getAsLong() < lowest.getAsLong())) {
                    lowest = free;
                }
            }
        }
        return lowest;
    }

    private static OptionalLong freeBytes(Path group, Names names) {
        try {
            // Without a limit a word stands there.
            long limit = Long.parseLong(Files.readString(group.resolve(names.limit())).strip());
            long used = Long.parseLong(Files.readString(group.resolve(names.used())).strip());
            long cache = 0;
            for (String line : Files.readAllLines(group.resolve("memory.stat"))) {
                if (line.startsWith(names.cache() + " ")) {
                    cache = Long.parseLong(line.substring(names.cache().length()).strip());
                }
            }
            return OptionalLong.of(Math.max(0, limit - used + cache));
        } catch (IOException | NumberFormatException unknown) {
            return OptionalLong.empty();
        }
    }
}
