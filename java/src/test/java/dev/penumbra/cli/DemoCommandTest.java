package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.cli.Cli.Outcome;
import dev.penumbra.cli.DemoCommand.Skill;
import dev.penumbra.cli.DemoCommand.Tuned;
import dev.penumbra.train.StepMetrics;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class DemoCommandTest {

    @Test
    void aShortDemoTunesWritesAndReports(@TempDir Path folder) {
        Path output = folder.resolve("demo");
        // A second is too short for anything but the fewest steps.
        Outcome outcome = Cli.run("demo", "--output", output.toString(), "--seconds", "1", "--threads", "1");
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.code()).isZero();
        assertThat(outcome.out()).containsSubsequence("Prompt:", "Before:", "Dense:", "1/", "Sparse:", "1/", "After:",
                "held-out loss", "dense", "100%", "sparse", "Held-out loss", "adapter was written, read again and checked",
                "Report:  " + output.resolve("report.html"));
        assertThat(output.resolve("adapter_model.safetensors")).exists();
        assertThat(output.resolve("report.html")).content().contains("<svg", "Held-out loss", "real tokens/s");
    }

    @Test
    void aDemoReplacesTheAdapterOfTheOneBeforeAndNoOther(@TempDir Path folder) throws IOException {
        Path output = folder.resolve("demo");
        String model = Cli.model(output).toString();
        String[] train = {"train", "--model", model, "--data", Cli.data(folder.resolve("data.jsonl"), 8).toString(),
                "--steps", "1", "--threads", "1", "--output", output.toString()};
        assertThat(Cli.run(train).code()).isZero();
        String[] demo = {"demo", "--output", output.toString(), "--seconds", "1", "--threads", "1"};
        assertThat(Cli.run(demo).code()).as("over an adapter of the demo's own model").isZero();
        Path config = output.resolve("adapter_config.json");
        Files.writeString(config, Files.readString(config).replace(model, "opt-125m"));
        byte[] weights = Files.readAllBytes(output.resolve("adapter_model.safetensors"));
        Outcome refused = Cli.run(demo);
        assertThat(refused.code()).isEqualTo(1);
        assertThat(refused.err())
                .startsWith("penumbra: " + output + ": expected no adapter but an earlier demo's, found one of"
                        + " the model opt-125m")
                .hasLineCount(1);
        assertThat(output.resolve("adapter_model.safetensors")).hasBinaryContent(weights);
    }

    @Test
    void aModelThatIsInTheDemosFolderIsNotOverwritten(@TempDir Path folder) throws IOException {
        Path config = Files.createDirectories(folder.resolve("model")).resolve("config.json");
        Files.writeString(config, "{}");
        Outcome refused = Cli.run("demo", "--output", folder.toString(), "--seconds", "1", "--threads", "1");
        assertThat(refused.code()).isEqualTo(1);
        assertThat(refused.err())
                .startsWith("penumbra: " + config + ": expected the bundled model's file or none, found another"
                        + " model's")
                .hasLineCount(1);
        assertThat(config).hasContent("{}");
    }

    @Test
    void theStepsFillTheTimeWithinBounds() {
        assertThat(DemoCommand.stepsIn(50, 200)).isEqualTo(250);
        assertThat(DemoCommand.stepsIn(1, 200)).isEqualTo(20);
        assertThat(DemoCommand.stepsIn(50, 1)).isEqualTo(1000);
    }

    @Test
    void aLossThatDoesNotFallByAFifthIsAFailure() {
        Skill before = new Skill(2, "");
        assertThatCode(() -> DemoCommand.requireFall(before, new Skill(1.5, ""))).doesNotThrowAnyException();
        assertThatThrownBy(() -> DemoCommand.requireFall(before, new Skill(1.7, ""))).isInstanceOf(IOException.class)
                .hasMessage("expected the held-out loss to fall by at least 20%, found 15.0%");
        assertThatThrownBy(() -> DemoCommand.requireFall(before, new Skill(Double.NaN, ""))).isInstanceOf(IOException.class);
    }

    @Test
    void theFactsAreThoseOfTheSteps() {
        List<StepMetrics> steps = List.of(new StepMetrics(1, 3, 0, 1, 900, 0, 250),
                new StepMetrics(2, 2, 0, 1, 1100, 0, 750));
        Tuned tuned = new Tuned(null, steps, 1);
        assertThat(tuned.stepMs()).isEqualTo(500);
        assertThat(DemoCommand.facts("a device", tuned, tuned, "a prompt\n", new Skill(4, "a"), new Skill(1, "b")))
                .containsEntry("Time", "1.0 s, 500.0 ms a step, 2000 real tokens/s")
                .containsEntry("Held-out loss", "4.0000 before, 1.0000 after (75.0% lower)")
                .containsEntry("Prompt", "a prompt").containsEntry("Device", "a device").containsKey("LoRA");
    }
}
