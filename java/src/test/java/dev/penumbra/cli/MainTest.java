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
            trian                                     | expected a command, found trian; did you mean train?
            tune --model m                            | expected a command, found tune (penumbra --help lists what there is)
            train m --model m --data d --output o     | expected options alone, found m (
            train --model m --data d --output o --learning-rate 1e-4 | expected an option of penumbra train, found --learning-rate; did you mean --lr?
            train --model m --data d --output o --lora-rank=4 | expected an option of penumbra train, found --lora-rank; did you mean --lora-r?
            inspect                                   | Missing required options: '--model=DIR', '--data=FILE'
            inspect --model x --data y --unknown      | expected an option of penumbra inspect, found --unknown (
            train --model m --data d --output o --batch-sze 2 | did you mean --batch-size?
            train --model m --data d --ouput o        | expected an option of penumbra train, found --ouput; did you mean --output? (
            help train                                | expected a command, found help (
            train --modle m                           | expected an option of penumbra train, found --modle; did you mean --model? (
            train --model m --data d --lr             | Missing required parameter for option '--lr' (X)
            train --lr fast                           | Invalid value for option '--lr': 'fast' is not a double
            train --dtype f16                         | expected one of f32, bf16, found f16
            train --model m --data d --output o --mlp-sparsity some | Invalid value for option '--mlp-sparsity': expected one of off, all, exact, oracle, predicted, static, random, seed, low-rank, found some (penumbra
            train --model m --data d --output o --sparsity predicted | expected --calibration DIR with --sparsity predicted, found none
            train --model m --data d --output o --sparsity low-rank | expected --calibration DIR with --sparsity low-rank, found none
            train --model m --data d --output o --mlp-sparsity low-rank | expected --calibration DIR with --mlp-sparsity low-rank, found none
            train --model m --data d --output o --calibration c | expected --mlp-sparsity, --attention-sparsity or --sparsity with --calibration, found off
            train --model m --data d --output o --attention-sparsity predicted | expected --calibration DIR with --attention-sparsity predicted, found none
            train --model m --data d --output o --attention-sparsity static | expected --calibration DIR with --attention-sparsity static, found none
            train --model m --data d --output o --attention-sparsity seed | Invalid value for option '--attention-sparsity': expected one of off, all, exact, oracle, predicted, static, random, bigbird, longformer, found seed
            train --model m --data d --output o --attention-sparsity oracle --attention-coverage 0 | expected a coverage above 0, at most 1, found 0.0
            train --model m --data d --output o --attention-sparsity random --attention-coverage 1 | expected a coverage or a budget below 1 for blocks of random attention
            train --model m --data d --output o --attention-sparsity bigbird --attention-budget 2 | expected a budget above 0, at most 1, found 2.0
            train --model m --data d --output o --attention-sparsity oracle --attention-block 32 | expected attention blocks of 64 or 128 rows, found 32
            train --model m --data d --output o --sparsity oracle --coverage 1.5 | expected a coverage above 0, at most 1, found 1.5
            train --model m --data d --output o --sparsity oracle --coverage 1 | expected a coverage or a budget below 1 for oracle blocks
            train --model m --data d --output o --sparsity oracle --mlp-block 48 | expected blocks of 32, 64 or 128 neurons, found 48
            train --model m --data d --output o --sparsity oracle --rows-per-list 100 | expected rows of a list that are a multiple of 128, or 0, found 100
            train --model m --data d --output o --sparsity oracle --adjust-coverage | expected --sense-every with --adjust-coverage, found no measurements
            train --model m --data d --output o --sparsity oracle --budget 0.5 --attention-budget 0.5 --sense-every 2 --adjust-coverage | expected a coverage below 1 with --adjust-coverage, found none
            train --model m --data d --output o --mlp-sparsity exact --sense-every 2 --adjust-coverage | expected a coverage below 1 with --adjust-coverage, found none
            train --model m --data d --output o --sparsity exact --coverage 0.5 | expected a coverage of 1 for exact blocks, which are not chosen by one, found 0.5
            train --model m --data d --output o --sparsity all --coverage 0.5 | expected a coverage of 1 for all blocks, which are not chosen by one, found 0.5
            train --model m --data d --output o --sparsity seed --coverage 0.5 | expected a coverage of 1 for seed blocks, which are not chosen by one, found 0.5
            train --model m --data d --output o --sparsity all --budget 0.5 | expected a budget of 1 for all blocks, which are not bounded by one, found 0.5
            train --model m --data d --output o --sparsity exact --attention-coverage 0.5 | expected a coverage of 1 for blocks of exact attention, which are not chosen by one, found 0.5
            train --model m --data d --output o --attention-sparsity longformer --attention-coverage 0.5 | expected a coverage of 1 for blocks of longformer attention, which are not chosen by one, found 0.5
            train --model m --data d --output o --attention-sparsity exact --attention-budget 0.5 | expected a budget of 1 for blocks of exact attention, which are not bounded by one, found 0.5
            train --model m --data d --output o --attention-sparsity all --attention-budget 0.5 | expected a budget of 1 for blocks of all attention, which are not bounded by one, found 0.5
            train --model m --data d --output o --sparsity seed --rows-per-list 256 | expected one list for the whole batch, 0 rows per list, for seed blocks, found 256
            train --model m --data d --output o --init-adapter a --lora-r 4 | expected no --init-adapter with --lora-r, found one, whose own r, alpha, dropout and targets hold
            generate --model m --prompt p --top-p 0.5 | expected a --temperature above 0 with --top-p, found 0, which draws nothing
            generate --model m --prompt p --seed 1 | expected a --temperature above 0 with --seed, found 0, which draws nothing
            inspect --model m --data d --threads 2 | expected --attention with --threads, found none: nothing is computed
            inspect --model m --data d --attention --calibration c --output o --samples 2 | expected no --attention with --samples, found it: one --sample is drawn
            calibrate --model m --data d --output o --attention-block 0 --attention-rank 8 | expected an --attention-block of 64 or 128 with --attention-rank, found 0, which leaves attention alone
            train --model m --data d --output o --coverage 0.9 | expected --mlp-sparsity or --sparsity with --coverage, found none
            train --model m --data d --output o --attention-sparsity oracle --budget 0.5 | expected --mlp-sparsity or --sparsity with --budget, found none
            train --model m --data d --output o --mlp-sparsity oracle --attention-budget 0.5 | expected --attention-sparsity or --sparsity with --attention-budget, found none
            train --model m --data d --output o --sparsity-pass both | expected --sparsity, --mlp-sparsity or --attention-sparsity with --sparsity-pass, found none
            train --model m --data d --output o --threads -1 | expected 0 to 1024 threads, found -1
            train --model m --data d --output o --eval-every 5 | expected --eval-data with --eval-every, found none
            train --model m --data d --output o --report / | expected a file for --report, found the folder /
            train --model m --data d --output o --metrics / | expected a file for --metrics, found the folder /
            inspect --model m --data d --adapter a | expected --attention with --adapter, found none
            train --model m --data d --output o --sparsity-pass forward | expected one of both, backward, found forward
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
                "--grad-accum", "--offload-layers", "--lora-r", "--lora-alpha", "--lora-dropout", "--targets",
                "--init-adapter", "--dtype",
                "--device", "--seed", "--no-shuffle", "--no-pack", "--loss", "--truncate", "--eval-data", "--eval-every",
                "--save-every", "--resume", "--metrics", "--threads", "--dry-run", "--config", "--verbose", "--mlp-sparsity",
                "--sparsity", "--attention-sparsity", "--attention-coverage", "--attention-budget", "--attention-block",
                "--sparsity-pass", "--coverage", "--budget", "--mlp-block", "--rows-per-list",
                "--dense-warmup", "--calibration", "--sense-every", "--adjust-coverage", "--report");
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
