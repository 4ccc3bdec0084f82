package dev.penumbra.internal.ffi;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ControlGroupsTest {

    @TempDir
    Path mounted;

    private void second(String group, String limit, long used, long cache) throws IOException {
        Path folder = Files.createDirectories(mounted.resolve(group));
        Files.writeString(folder.resolve("memory.max"), limit + "\n");
        Files.writeString(folder.resolve("memory.current"), used + "\n");
        Files.writeString(folder.resolve("memory.stat"), "anon 5\ninactive_file " + cache + "\nactive_file 7\n");
    }

    @Test
    void theLowestLimitOnTheWayUpCounts() throws IOException {
        second("a/b", "max", 100, 0);
        second("a", "4000", 1000, 300);
        assertThat(ControlGroups.freeBytes(mounted, List.of("0::/a/b"))).hasValue(3300);
        second("a/b", "3000", 500, 0);
        assertThat(ControlGroups.freeBytes(mounted, List.of("0::/a/b"))).hasValue(2500);
        second("a/b", "3000", 4000, 0);
        assertThat(ControlGroups.freeBytes(mounted, List.of("0::/a/b"))).hasValue(0);
    }

    @Test
    void aContainerSeesItsOwnGroupAtTheTop() throws IOException {
        second("", "4000", 1000, 0);
        assertThat(ControlGroups.freeBytes(mounted, List.of("0::/"))).hasValue(3000);
        Path first = Files.createDirectories(mounted.resolve("memory"));
        Files.writeString(first.resolve("memory.limit_in_bytes"), "2000\n");
        Files.writeString(first.resolve("memory.usage_in_bytes"), "600\n");
        Files.writeString(first.resolve("memory.stat"), "inactive_file 1\ntotal_inactive_file 100\n");
        assertThat(ControlGroups.freeBytes(mounted, List.of("7:blkio:/docker/x", "4:memory,hugetlb:/docker/x")))
                .hasValue(1500);
    }

    @Test
    void withoutLimitsNothingIsKnown() throws IOException {
        second("a", "max", 1000, 0);
        assertThat(ControlGroups.freeBytes(mounted, List.of("0::/a", "3:cpu:/a", "nonsense", "4:memory:/b/../..")))
                .isEmpty();
        assertThat(ControlGroups.freeBytes(mounted.resolve("none"), List.of("0::/a"))).isEmpty();
    }
}
