package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.cli.Cli.Outcome;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import picocli.CommandLine;

class MainTest {

    @Test
    void doctorTellsOfEveryDeviceOrWhyItCannotBeUsed() {
        Outcome outcome = Cli.run("doctor");
        assertThat(outcome.code()).isZero();
        assertThat(outcome.out()).containsPattern("(?m)^jvm +[0-9]").containsPattern("(?m)^heap +[0-9]+ MiB at most")
                .containsPattern("(?m)^cpu +cpu, .*oneDNN.*, [0-9]+ MiB free").containsPattern("(?m)^cuda:0 +\\S+");
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            ''                                        | expected a command
            trian                                     | did you mean train?
            inspect                                   | Missing required options: '--model=DIR', '--data=FILE'
            inspect --model x --data y --unknown      | '--unknown'
            train --model m --data d --output o --batch-sze 2 | did you mean --batch-size?
            train --lr fast                           | Invalid value for option '--lr': 'fast' is not a double
            train --dtype f16                         | expected one of [F32, BF16]
            """)
    void wrongUsageIsExitCodeTwoAndOneLine(String arguments, String message) {
        Outcome outcome = Cli.run(arguments.isEmpty() ? new String[0] : arguments.split(" "));
        assertThat(outcome.code()).isEqualTo(2);
        assertThat(outcome.err()).startsWith("penumbra: ").contains(message).hasLineCount(1);
    }

    @Test
    void trainHasEveryOptionItsReadersKnow() {
        CommandLine train = new CommandLine(new Main()).getSubcommands().get("train");
        assertThat(train.getCommandSpec().optionsMap()).containsKeys("--model", "--data", "--output", "--steps", "--epochs",
                "--batch-size", "--seq-len", "--lr", "--schedule", "--warmup-steps", "--weight-decay", "--clip",
                "--grad-accum", "--lora-r", "--lora-alpha", "--lora-dropout", "--targets", "--init-adapter", "--dtype",
                "--device", "--seed", "--no-shuffle", "--no-pack", "--loss", "--truncate", "--eval-data", "--eval-every",
                "--save-every", "--resume", "--metrics", "--threads", "--dry-run", "--config", "--verbose");
    }

    @Test
    void everyOptionAndCommandIsDescribed() {
        CommandLine main = new CommandLine(new Main());
        assertThat(main.getSubcommands()).isNotEmpty();
        main.getSubcommands().forEach((name, command) -> {
            assertThat(command.getCommandSpec().usageMessage().description()).as(name).isNotEmpty();
            command.getCommandSpec().options().forEach(
                    option -> assertThat(List.of(option.description())).as(name + " " + option.longestName()).isNotEmpty());
        });
    }
}
