package dev.penumbra.jmh;

import picocli.CommandLine;
import picocli.CommandLine.Command;

/** The benchmarks' command line; {@code jmh/run} starts it. */
@Command(name = "jmh/run", description = "Measure Penumbra, alone and beside transformers + PEFT.", mixinStandardHelpOptions = true, subcommands = {
        BenchmarksCommand.class, StepsCommand.class, StepVsPeftCommand.class, E2eVsPeftCommand.class, TableCommand.class,
        AllCommand.class, QualityCommand.class})
final class Main {

    private Main() {
    }

    public static void main(String[] arguments) {
        System.exit(commandLine().execute(arguments));
    }

    static CommandLine commandLine() {
        return new CommandLine(new Main()).setExecutionExceptionHandler((failure, command, parsed) -> {
            command.getErr().println("jmh/run: " + failure.getMessage());
            return command.getCommandSpec().exitCodeOnExecutionException();
        });
    }
}
