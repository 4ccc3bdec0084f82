package dev.penumbra.io;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class AdapterFilesTest {

    @TempDir
    Path folder;

    private static void write(Path folder, String config, String weights) throws IOException {
        Files.createDirectories(folder);
        Files.writeString(folder.resolve(AdapterFiles.CONFIG), config);
        Files.writeString(folder.resolve(AdapterFiles.WEIGHTS), weights);
    }

    private String located() throws IOException {
        return Files.readString(AdapterFiles.locate(folder, AdapterFiles.CONFIG)) + " "
                + Files.readString(AdapterFiles.locate(folder, AdapterFiles.WEIGHTS));
    }

    /** Every state that a writer which replaces an adapter goes through, from the one that decides it on. */
    @ParameterizedTest
    @ValueSource(ints = {0, 1, 2, 3})
    void aWriterThatIsKilledAfterEachOfItsStepsHasReplacedThePair(int steps) throws IOException {
        Path committed = folder.resolve(".adapter.new");
        write(folder, "old", "old");
        write(committed, "new", "new");
        if (steps > 0) {
            Files.delete(folder.resolve(AdapterFiles.CONFIG));
        }
        if (steps > 1) {
            AtomicFiles.move(committed.resolve(AdapterFiles.WEIGHTS), folder.resolve(AdapterFiles.WEIGHTS));
        }
        if (steps > 2) {
            AtomicFiles.move(committed.resolve(AdapterFiles.CONFIG), folder.resolve(AdapterFiles.CONFIG));
        }
        assertThat(located()).isEqualTo("new new");
        if (Files.exists(folder.resolve(AdapterFiles.CONFIG))) {
            assertThat(Files.readString(folder.resolve(AdapterFiles.CONFIG))).as("what PEFT finds")
                    .isEqualTo(Files.readString(folder.resolve(AdapterFiles.WEIGHTS)));
        }
        AdapterFiles.complete(folder);
        assertThat(located()).isEqualTo("new new");
        assertThat(folder.toFile().list()).containsExactlyInAnyOrder(AdapterFiles.CONFIG, AdapterFiles.WEIGHTS);
    }

    @Test
    void aFirstAdapterThatDidNotGetToItsPlaceIsKeptForTheNextWriter() throws IOException {
        Path inTheWay = Files.createDirectories(folder.resolve(AdapterFiles.WEIGHTS).resolve("mine"));
        assertThrows(IOException.class, () -> AdapterFiles.replace(folder, staged -> write(staged, "new", "new")));
        assertThat(located()).isEqualTo("new new");
        Files.delete(inTheWay);
        Files.delete(inTheWay.getParent());
        AdapterFiles.complete(folder);
        assertThat(located()).isEqualTo("new new");
        assertThat(folder.toFile().list()).containsExactlyInAnyOrder(AdapterFiles.CONFIG, AdapterFiles.WEIGHTS);
    }

    @Test
    void aWriterThatFailsLeavesTheOldPairAndNothingElse() throws IOException {
        write(folder, "old", "old");
        IOException failure = assertThrows(IOException.class,
                () -> AdapterFiles.replace(folder, staged -> {
                    Files.writeString(staged.resolve(AdapterFiles.WEIGHTS), "new");
                    throw new IOException("No space left on device");
                }));
        assertThat(failure).hasMessage(folder.resolve(AdapterFiles.WEIGHTS)
                + ": expected to write it, found: No space left on device");
        assertThat(located()).isEqualTo("old old");
        assertThat(folder.toFile().list()).containsExactlyInAnyOrder(AdapterFiles.CONFIG, AdapterFiles.WEIGHTS);
    }

    @Test
    void filesAreReadableAsTheUsersOwnMaskSays() throws IOException {
        Path plain = Files.writeString(folder.resolve("plain"), "");
        AtomicFiles.writeString(folder.resolve("atomic"), "");
        assertThat(Files.getPosixFilePermissions(folder.resolve("atomic")))
                .isEqualTo(Files.getPosixFilePermissions(plain));
    }
}
