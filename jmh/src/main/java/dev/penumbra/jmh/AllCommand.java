package dev.penumbra.jmh;

import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** Measures everything that the README shows of the CPU. */
@Command(name = "all", description = "Run and record everything that the README's tables show of the CPU, then write them. About ten minutes.", mixinStandardHelpOptions = true)
final class AllCommand implements Callable<Integer> {

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "The E2E file: JSON Lines of {\"context\": [ids], \"completion\": [ids]}.")
    private Path data;

    @Override
    public Integer call() {
        for (List<String> command : List.of(
                List.of("step-vs-peft", "--record"),
                List.of("e2e-vs-peft", "--data", data.toString(), "--record"),
                List.of("benchmarks", "--record"),
                List.of("table", "--write"))) {
            int status = Main.commandLine().execute(command.toArray(String[]::new));
            if (status != 0) {
                return status;
            }
        }
        return 0;
    }
}
