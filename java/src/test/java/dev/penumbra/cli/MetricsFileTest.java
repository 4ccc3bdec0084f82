package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.train.StepMetrics;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class MetricsFileTest {

    @TempDir
    Path folder;

    private static StepMetrics step(int step) {
        return new StepMetrics(step, 2.5, 1e-3, 0.75, 100, 200, 500);
    }

    @Test
    void aStepIsAnObjectOnALine() throws IOException {
        Path file = folder.resolve("metrics.jsonl");
        try (MetricsFile metrics = new MetricsFile(file, false)) {
            metrics.onStep(step(1));
            assertThat(Files.readString(file)).as("flushed at once").isEqualTo(
                    "{\"step\":1,\"loss\":2.5,\"lr\":0.001,\"grad_norm\":0.75,\"real_tokens\":100,\"tokens_per_s\":200.0,\"step_ms\":500.0}\n");
        }
    }

    @Test
    void aResumedRunReplacesTheStepsAfterItsCheckpoint() throws IOException {
        Path file = Files.writeString(folder.resolve("metrics.jsonl"),
                "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4,\"lo");
        try (MetricsFile metrics = new MetricsFile(file, true)) {
            metrics.onStep(step(3));
            metrics.onStep(step(4));
        }
        assertThat(Files.readAllLines(file)).hasSize(4).element(2).asString().startsWith("{\"step\":3,\"loss\":2.5");
    }

    @Test
    void aRunThatIsNotResumedStartsAfresh() throws IOException {
        Path file = Files.writeString(folder.resolve("metrics.jsonl"), "{\"step\":1}\n");
        try (MetricsFile metrics = new MetricsFile(file, false)) {
            metrics.onStep(step(1));
        }
        assertThat(Files.readAllLines(file)).hasSize(1);
    }

    @Test
    void aFullDiskIsNamed() throws IOException {
        Path full = Path.of("/dev/full");
        Assumptions.assumeTrue(Files.exists(full), "no /dev/full here");
        MetricsFile metrics = new MetricsFile(full, false);
        assertThatThrownBy(() -> metrics.onStep(step(1))).hasMessageContaining("/dev/full: No space left");
    }
}
