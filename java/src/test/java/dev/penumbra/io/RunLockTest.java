package dev.penumbra.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.ChildJvm;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class RunLockTest {

    @TempDir
    Path folder;

    /** Takes the folder and keeps it until it is killed. */
    static final class Holder {
        public static void main(String[] arguments) throws Exception {
            try (RunLock held = RunLock.acquire(Path.of(arguments[0]))) {
                System.out.println("held");
                Thread.sleep(Long.MAX_VALUE);
            }
        }
    }

    @Test
    void aSecondProcessIsRefusedUntilTheFirstEndsHoweverItEnds() throws Exception {
        try (ChildJvm first = ChildJvm.start(Holder.class, folder.toString())) {
            assertThat(first.readLine()).isEqualTo("held");
            assertThatThrownBy(() -> RunLock.acquire(folder)).isInstanceOf(IOException.class)
                    .hasMessage(folder + ": expected a folder that no other run writes to, found one that holds it");
            first.kill();
        }
        RunLock.acquire(folder).close();
    }

    @Test
    void aSecondRunOfTheSameProcessIsRefusedUntilTheFirstEnds() throws IOException {
        try (RunLock first = RunLock.acquire(folder)) {
            assertThat(first).isNotNull();
            assertThatThrownBy(() -> RunLock.acquire(folder)).isInstanceOf(IOException.class)
                    .hasMessageContaining(folder.toString());
        }
        RunLock.acquire(folder).close();
    }

    @Test
    void whatAKilledRunLeftIsClearedAwayAndNothingElse() throws IOException {
        for (String stale : new String[]{".adapter_model.safetensors.1.part", ".checkpoint-5.2.part", ".checkpoint-4.old"}) {
            Files.writeString(Files.createDirectory(folder.resolve(stale)).resolve("state.json"), "{}");
        }
        for (String kept : new String[]{"checkpoint-4", ".checkpoint-6.old", "notes.old", "x.part"}) {
            Files.createDirectory(folder.resolve(kept));
        }
        RunLock.acquire(folder).close();
        assertThat(folder.toFile().list()).containsExactlyInAnyOrder(".lock", "checkpoint-4", ".checkpoint-6.old",
                "notes.old",
                "x.part");
    }

    @Test
    void aFolderThatCannotBeIsNamed() throws IOException {
        Path file = Files.writeString(folder.resolve("file"), "");
        assertThatThrownBy(() -> RunLock.acquire(file.resolve("output"))).isInstanceOf(IOException.class)
                .hasMessageStartingWith(file.resolve("output") + ": expected to write it, found: ");
    }
}
