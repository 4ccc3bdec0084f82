package dev.penumbra.jmh;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/**
 * Measures everything that the README shows of the CPU, piece by piece: a piece that other work disturbed is tried again,
 * and does not undo the others.
 */
@Command(name = "all", description = "Run and record everything that the README's tables show of the CPU, then write them. About ten minutes.", mixinStandardHelpOptions = true)
final class AllCommand implements Callable<Integer> {

    private static final int TRIES = 3;

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "The E2E file: JSON Lines of {\"context\": [ids], \"completion\": [ids]}.")
    private Path data;

    @Override
    public Integer call() {
        List<List<String>> pieces = new ArrayList<>();
        pieces.add(List.of("step-vs-peft", "--record"));
        pieces.add(List.of("e2e-vs-peft", "--data", data.toString(), "--record"));
        BenchmarksCommand.classes()
                .forEach(name -> pieces.add(List.of("benchmarks", "--record", "--", name, "-v", "SILENT")));
        pieces.removeIf(AllCommand::succeeds);
        if (execute(List.of("table", "--write")) != 0) {
            return 1;
        }
        pieces.forEach(piece -> System.err.println("jmh/run: not recorded: " + String.join(" ", piece)));
        return pieces.isEmpty() ? 0 : 1;
    }

    private static boolean succeeds(List<String> piece) {
        for (int i = 0; i < TRIES; i++) {
            if (execute(piece) == 0) {
                return true;
            }
        }
        return false;
    }

    private static int execute(List<String> command) {
        System.out.println("jmh/run " + String.join(" ", command));
        return Main.commandLine().execute(command.toArray(String[]::new));
    }
}
