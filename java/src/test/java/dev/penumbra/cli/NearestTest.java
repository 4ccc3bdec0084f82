package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import picocli.CommandLine;

class NearestTest {

    private static final Set<String> OPTIONS = new CommandLine(new Main()).getSubcommands().get("train").getCommandSpec()
            .optionsMap().keySet().stream().filter(name -> name.startsWith("--")).map(name -> name.substring(2))
            .collect(Collectors.toSet());

    @ParameterizedTest
    @CsvSource({"batch-sze, batch-size", "stpes, steps", "lora-rank, lora-r", "learning-rate, lr",
            "per-device-train-batch-size, batch-size", "num-train-epochs, epochs", "max-seq-length, seq-len",
            "gradient-accumulation-steps, grad-accum", "target-modules, targets", "lr-schedule, schedule", "los, loss",
            "model-path, model", "output-dir, output", "weight-decay-rate, weight-decay"})
    void anOptionIsFoundByWhatItIsMistypedAsOrCalledElsewhere(String given, String nearest) {
        assertThat(Nearest.of(given, OPTIONS)).contains(nearest);
    }

    @Test
    void aWordThatStandsForNoneHasNoNearest() {
        for (String given : List.of("tune", "optimizer", "x", "")) {
            assertThat(Nearest.of(given, OPTIONS)).as(given).isEmpty();
        }
        assertThat(Nearest.of("tune", List.of("train", "generate", "eval"))).isEmpty();
        assertThat(Nearest.of("trian", List.of("train", "generate", "eval"))).contains("train");
    }
}
