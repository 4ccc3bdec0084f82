package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.StepSparsity;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
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
        try (MetricsFile metrics = new MetricsFile(file)) {
            metrics.onStep(step(1));
            assertThat(Files.readString(file)).as("flushed at once").isEqualTo(
                    "{\"step\":1,\"loss\":2.5,\"lr\":0.001,\"grad_norm\":0.75,\"real_tokens\":100,\"tokens_per_s\":200.0,\"step_ms\":500.0}\n");
        }
    }

    @Test
    void aSparseStepTellsWhatItKept() throws IOException {
        Path file = folder.resolve("metrics.jsonl");
        StepSparsity sparsity = new StepSparsity(List.of(0.25, 0.75), List.of(1.0, 0.5), List.of(0.0, 1.0),
                List.of(0.5, 1.0));
        try (MetricsFile metrics = new MetricsFile(file)) {
            metrics.onStep(new StepMetrics(1, 2.5, 1e-3, 0.75, 100, 200, 500, sparsity));
            metrics.onStep(new StepMetrics(2, 2.5, 1e-3, 0.75, 100, 200, 500,
                    new StepSparsity(List.of(0.5), List.of(1.0), List.of(0.0), List.of())));
        }
        assertThat(Files.readAllLines(file).getFirst()).endsWith("\"mlp_kept\":0.5,\"mlp_covered\":0.75,\"mlp_cut\":0.5,"
                + "\"mlp_kept_by_layer\":[0.25,0.75],\"mlp_true_coverage\":0.75,\"mlp_true_coverage_by_layer\":[0.5,1.0]}");
        assertThat(Files.readAllLines(file).getLast()).endsWith("\"mlp_kept_by_layer\":[0.5]}");
    }

    @Test
    void attentionIsToldBesideTheMlp() throws IOException {
        Path file = folder.resolve("metrics.jsonl");
        StepSparsity sparsity = new StepSparsity(List.of(0.25, 0.75), List.of(1.0, 0.5), List.of(0.0, 1.0),
                List.of(0.5, 1.0));
        try (MetricsFile metrics = new MetricsFile(file)) {
            metrics.onStep(new StepMetrics(1, 2.5, 1e-3, 0.75, 100, 200, 500, sparsity, sparsity));
            metrics.onStep(new StepMetrics(2, 2.5, 1e-3, 0.75, 100, 200, 500, null, sparsity));
        }
        assertThat(Files.readAllLines(file).getFirst()).contains("\"mlp_kept\":0.5,")
                .endsWith("\"attention_kept\":0.5,\"attention_covered\":0.75,\"attention_cut\":0.5,"
                        + "\"attention_kept_by_layer\":[0.25,0.75],\"attention_true_coverage\":0.75,"
                        + "\"attention_true_coverage_by_layer\":[0.5,1.0]}");
        assertThat(Files.readAllLines(file).getLast()).contains("\"attention_kept\":0.5").doesNotContain("mlp");
    }

    @Test
    void aResumedRunReplacesTheStepsAfterItsCheckpoint() throws IOException {
        Path file = Files.writeString(folder.resolve("metrics.jsonl"),
                "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4,\"lo");
        try (MetricsFile metrics = new MetricsFile(file)) {
            metrics.onStep(step(3));
            metrics.onStep(step(4));
        }
        assertThat(Files.readAllLines(file)).hasSize(4).element(2).asString().startsWith("{\"step\":3,\"loss\":2.5");
    }

    @Test
    void aFileOfSomethingElseIsNotOverwritten() throws IOException {
        Path file = Files.writeString(folder.resolve("data.jsonl"), "{\"text\":\"a\"}\n");
        assertThatThrownBy(() -> new MetricsFile(file)).isInstanceOf(IOException.class)
                .hasMessage(file + ": expected metrics of a run or no file, found a file of something else: choose another");
        assertThat(file).hasContent("{\"text\":\"a\"}\n");
    }

    @Test
    void aRunThatIsNotResumedStartsAfresh() throws IOException {
        Path file = Files.writeString(folder.resolve("metrics.jsonl"), "{\"step\":1}\n");
        try (MetricsFile metrics = new MetricsFile(file)) {
            metrics.onStep(step(1));
        }
        assertThat(Files.readAllLines(file)).hasSize(1);
    }

    @Test
    void aRunThatEndsBeforeItsFirstStepLeavesWhatWasThere() throws IOException {
        Path file = Files.writeString(folder.resolve("metrics.jsonl"), "{\"step\":1}\n");
        new MetricsFile(file).close();
        assertThat(file).hasContent("{\"step\":1}\n");
    }

    @Test
    void aFullDiskIsNamed() throws IOException {
        Path full = Path.of("/dev/full");
        Assumptions.assumeTrue(Files.exists(full), "no /dev/full here");
        MetricsFile metrics = new MetricsFile(full);
        assertThatThrownBy(() -> metrics.onStep(step(1))).hasMessageContaining("/dev/full: No space left");
    }
}
