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
                output.toString(), "--threads", "1", "--held-out-batches", "2", "--epochs", "1"));
        if (!Arrays.asList(more).contains("--seq-len")) {
            all.addAll(List.of("--seq-len", "128"));
        }
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

    /** Lines of 430 tokens or more, beside short ones. */
    private void lengthyText(int samples) throws IOException {
        List<String> lines = new ArrayList<>();
        for (int i = 0; i < samples; i++) {
            StringBuilder text = new StringBuilder("Report " + i + ".");
            for (int sentence = 0; sentence < (i % 4 == 3 ? 2 : 200); sentence++) {
                text.append(" Table ").append((i * 7 + sentence * 3) % 40).append(" stands in row ").append(sentence % 9)
                        .append(i % 2 == 0 ? " of the room." : " near the door.");
            }
            lines.add("{\"text\":\"" + text + "\"}");
        }
        Files.write(data, lines);
    }

    @ParameterizedTest
    @CsvSource({"64, 0.45", "128, 0.9"})
    void attentionIsLookedAtWhereSamplesAreLongEnoughAndDrawn(int block, String budget) throws Exception {
        lengthyText(28);
        Outcome outcome = calibrate("--batches", "2", "--rank", "8", "--seq-len", "512", "--truncate", "--loss", "all",
                "--attention-block", Integer.toString(block), "--attention-budget", budget);
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.code()).isZero();
        assertThat(outcome.out()).containsSubsequence("training attention predictors of rank 16 for 24 heads",
                "Attention in blocks of " + block + " tokens", "the longest has " + 512 / block + " blocks",
                "Blocks that hold a part of a head's mass", "worst", "oracle predicted", " mean   plain", "adapters",
                "Patterns of the pool (version 1): sink-1", "Layouts of heads");
        assertThat(output.resolve("calibration.txt")).content().contains("Attention in blocks of " + block);
        Path page = folder.resolve("page.html");
        Outcome drawn = Cli.run("inspect", "--attention", "--model", model.toString(), "--data", data.toString(),
                "--seq-len", "512", "--truncate", "--loss", "all", "--threads", "1", "--calibration", output.toString(),
                "--output", page.toString());
        assertThat(drawn.err()).isEmpty();
        assertThat(drawn.code()).isZero();
        assertThat(drawn.out()).contains("layer  5: predictor keeps").contains("saved " + page);
        String html = Files.readString(page);
        assertThat(html).contains("Pattern pool, version 1", "sink-1", "Layer 5", "predicted", "true");
        java.util.regex.Matcher svgs = java.util.regex.Pattern.compile("<svg.*?</svg>", java.util.regex.Pattern.DOTALL)
                .matcher(html);
        int count = 0;
        while (svgs.find()) {
            javax.xml.parsers.DocumentBuilderFactory.newInstance().newDocumentBuilder()
                    .parse(new org.xml.sax.InputSource(new java.io.StringReader(svgs.group())));
            count++;
        }
        assertThat(count).as("one picture a layer, and the pool").isEqualTo(7);
    }

    @Test
    void shortTextIsCalibratedWithoutAttention() {
        Outcome outcome = calibrate("--batches", "2", "--rank", "8");
        assertThat(outcome.code()).isZero();
        assertThat(outcome.out()).containsOnlyOnce("two attention blocks of 128: calibrating without attention")
                .doesNotContain("Attention in blocks");
        Outcome drawn = Cli.run("inspect", "--attention", "--model", model.toString(), "--data", data.toString(),
                "--threads",
                "1", "--calibration", output.toString(), "--output", folder.resolve("page.html").toString());
        assertThat(drawn.code()).isEqualTo(1);
        assertThat(drawn.err()).contains("expected what is known of attention, found none").hasLineCount(1);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
            "--coverage=0.5 | expected --calibration DIR and --output FILE with --attention, found no --calibration",
            "--calibration=out | expected --calibration DIR and --output FILE with --attention, found no --output"})
    void drawingAttentionNeedsWhatItDrawsFrom(String option, String message) {
        Outcome outcome = Cli.run("inspect", "--attention", "--model", model.toString(), "--data", data.toString(), option);
        assertThat(outcome.code()).isEqualTo(2);
        assertThat(outcome.err()).contains(message);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
            "--attention-block=48 | expected attention blocks of 64 or 128 tokens, or 0 for none, found 48",
            "--attention-rank=12 | expected a rank for attention of 8 to 64 that is a multiple of 8, found 12",
            "--attention-budget=0 | expected a budget for attention above 0, at most 1, found 0.0",
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
    void aCalibrationThatIsThereIsNotOverwritten() throws IOException {
        Path there = Files.createDirectories(output).resolve("calibration.safetensors");
        Files.writeString(there, "mine");
        Outcome outcome = calibrate("--batches", "1");
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err()).startsWith("penumbra: " + output + ": expected a folder without a calibration, found"
                + " calibration.safetensors: move").hasLineCount(1);
        assertThat(there).hasContent("mine");
    }

    @Test
    void rowsLongerThanTheModelsPositionsAreRefused() {
        String message = "penumbra: expected a sequence length of at most 512, the model's positions, found 1024\n";
        assertThat(calibrate("--seq-len", "1024").err()).isEqualTo(message);
        assertThat(Cli.run("eval", "--model", model.toString(), "--data", data.toString(), "--seq-len", "1024", "--threads",
                "1").err()).isEqualTo(message);
    }

    @Test
    void tooLittleTextIsToldInALine() throws IOException {
        Files.writeString(data, "{\"text\":\"one line\"}\n");
        Outcome outcome = calibrate();
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err()).contains("expected 2 samples or more to calibrate with").hasLineCount(1);
    }
}
