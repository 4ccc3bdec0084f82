package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.cli.Cli.Outcome;
import dev.penumbra.expose.Calibration;
import dev.penumbra.io.ModelFolder;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CalibrateCommandTest {

    @TempDir
    Path folder;

    private Path model;
    private Path data;
    private Path output;

    @BeforeEach
    void input() {
        model = Cli.model(folder);
        data = Cli.data(folder.resolve("data.jsonl"), 200);
        output = folder.resolve("out");
    }

    private Outcome calibrate(String... more) {
        List<String> all = new ArrayList<>(List.of("calibrate", "--model", model.toString(), "--data", data.toString(),
                "--output",
                output.toString(), "--threads", "1", "--seq-len", "128", "--held-out-batches", "2", "--epochs", "1"));
        all.addAll(Arrays.asList(more));
        return Cli.run(all.toArray(String[]::new));
    }

    @Test
    void theBundledModelIsCalibratedInSeconds() throws IOException {
        long start = System.nanoTime();
        Outcome outcome = calibrate("--batches", "4", "--rank", "8");
        double seconds = (System.nanoTime() - start) / 1e9;
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.code()).isZero();
        // It takes a few; a busy machine may take several times as long.
        assertThat(seconds).isLessThan(60);
        assertThat(outcome.out()).containsSubsequence("running the model over sample text",
                "ordering 1024 neurons in each of 6 layers",
                "training predictors of rank 8", "How much a layer could skip", "Orders of neurons", "co-activation",
                "Mass that a policy's choice of 50.0% of the blocks covers", "oracle predicted", " mean   list",
                "saved " + output.resolve("calibration.safetensors"));
        assertThat(output.resolve("calibration.txt")).content().contains("Orders of neurons");
        try (ModelFolder files = ModelFolder.open(model)) {
            Calibration calibration = Calibration.read(output, files);
            assertThat(calibration.layers()).isEqualTo(6);
            assertThat(calibration.manifest().model()).isEqualTo("model");
            assertThat(calibration.predictor(5, 128).orElseThrow().unitsPerScore()).isEqualTo(4);
        }
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
            "--mlp-block=48 | expected blocks of 32, 64 or 128 neurons, found 48",
            "--rank=0 | expected a rank of 1 to 128, found 0",
            "--list-rows=100 | expected rows of a list that are a multiple of 128 and of the 16 that are pooled, found 100",
            "--coverage=0 | expected a coverage above 0, at most 1, found 0.0",
            "--budget=1.5 | expected a budget above 0, at most 1, found 1.5",
            "--batches=0 | expected 1 batch or more, found 0"})
    void wrongOptionsAreUsageErrors(String option, String message) {
        Outcome outcome = calibrate(option);
        assertThat(outcome.code()).isEqualTo(2);
        assertThat(outcome.err()).startsWith("penumbra: ").contains(message).hasLineCount(1);
        assertThat(output).doesNotExist();
    }

    @Test
    void tooLittleTextIsToldInALine() throws IOException {
        Files.writeString(data, "{\"text\":\"one line\"}\n");
        Outcome outcome = calibrate();
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err()).contains("expected 2 samples or more to calibrate with").hasLineCount(1);
    }
}
