package dev.penumbra.cli;

import dev.penumbra.backend.Device;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.train.Schedule;
import java.util.List;
import java.util.Optional;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.IVersionProvider;
import picocli.CommandLine.MissingParameterException;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.Spec;
import picocli.CommandLine.UnmatchedArgumentException;

/** The command line: exit code 0 when all went well, 1 when a command failed, 2 for wrong usage. */
@Command(name = "penumbra", description = "LoRA fine-tuning inside the JVM that computes only what the model uses.", mixinStandardHelpOptions = true, versionProvider = Main.Version.class, exitCodeListHeading = "Exit codes:%n", exitCodeList = {
        "0:done", "1:failed, with a line that says what was expected, found and where", "2:wrong usage",
        "130:ended by Ctrl-C, train with a checkpoint of the steps it did", "143:ended by SIGTERM, likewise"}, footer = {"",
                "For example:",
                "  penumbra doctor", "  penumbra train --model opt-125m --data train.jsonl --output adapter",
                "  penumbra generate --model opt-125m --adapter adapter --prompt Once"}, subcommands = {
                        DoctorCommand.class, DemoCommand.class, TrainCommand.class, CalibrateCommand.class,
                        EvalCommand.class,
                        GenerateCommand.class,
                        InspectCommand.class, ExportCommand.class, JshellCommand.class})
public final class Main implements Runnable {

    @Option(names = "--verbose", scope = ScopeType.INHERIT, description = "Print the trace of an error.")
    private boolean verbose;

    @Option(names = ConfigFile.OPTION, scope = ScopeType.INHERIT, paramLabel = "FILE", description = "YAML with options by their names (lr: 1e-4); the command line's own win.")
    private void config(String read) {
        // ConfigFile has put its options among the arguments; this makes the option known.
    }

    @Spec
    private CommandSpec spec;

    /** The version of the jar, or that of a build folder. */
    static final class Version implements IVersionProvider {
        @Override
        public String[] getVersion() {
            String version = Main.class.getPackage().getImplementationVersion();
            return new String[]{"penumbra " + (version == null ? "(classes of a build)" : version)};
        }
    }

    @Override
    public void run() {
        throw new ParameterException(spec.commandLine(), "expected a command");
    }

    /** Parses and runs, and turns failures into one readable line. */
    static int execute(String... arguments) {
        Main main = new Main();
        CommandLine line = new CommandLine(main);
        words(line, Schedule.class);
        words(line, ModelOptions.Compute.class);
        words(line, Device.Kind.class);
        words(line, LossOn.class);
        words(line, SelectionPolicy.class);
        words(line, AttentionPolicy.class);
        words(line, Pass.class);
        line.setUnmatchedOptionsAllowedAsOptionParameters(false);
        line.setExecutionExceptionHandler((failure, command, parsed) -> {
            if (main.verbose || !Failures.isExplained(failure)) {
                failure.printStackTrace(command.getErr());
            }
            command.getErr().println("penumbra: " + Failures.message(failure));
            return CommandLine.ExitCode.SOFTWARE;
        });
        ConfigFile config;
        try {
            config = ConfigFile.of(line, arguments);
        } catch (ConfigFile.Invalid wrong) {
            line.getErr().println("penumbra: " + wrong.getMessage());
            return CommandLine.ExitCode.USAGE;
        }
        line.setParameterExceptionHandler((wrong, given) -> {
            String name = wrong.getCommandLine().getCommandSpec().qualifiedName();
            wrong.getCommandLine().getErr().println(
                    "penumbra: " + config.origin(wrong) + message(wrong) + " (" + name + " --help lists what there is)");
            return CommandLine.ExitCode.USAGE;
        });
        return line.execute(config.arguments());
    }

    private static <E extends Enum<E>> void words(CommandLine line, Class<E> type) {
        line.registerConverter(type, new Words<>(type));
    }

    private static String message(ParameterException wrong) {
        CommandLine command = wrong.getCommandLine();
        List<String> unmatched = wrong instanceof UnmatchedArgumentException unknown ? unknown.getUnmatched() : List.of();
        // A required option may be missing because it is the one that is misspelt, or because its command was not meant.
        if (wrong instanceof MissingParameterException) {
            while (command.getUnmatchedArguments().isEmpty() && command.getParent() != null) {
                command = command.getParent();
            }
            unmatched = command.getUnmatchedArguments();
        }
        if (unmatched.isEmpty()) {
            return wrong.getMessage().lines().findFirst().orElse("wrong usage");
        }
        // What follows is most often the value that it was given.
        String found = unmatched.getFirst().split("=", 2)[0];
        boolean option = found.startsWith("-");
        String expected = option
                ? "an option of " + command.getCommandSpec().qualifiedName()
                : command.getSubcommands().isEmpty() ? "options alone" : "a command";
        String nearest = option
                ? nearestOption(command.getCommandSpec(), found.replaceFirst("^-+", "")).map("--"::concat).orElse("")
                : Nearest.of(found, command.getSubcommands().keySet()).orElse("");
        return "expected " + expected + ", found " + found + (nearest.isEmpty() ? "" : "; did you mean " + nearest + "?");
    }

    /** Of options by their long names, without dashes. */
    static Optional<String> nearestOption(CommandSpec of, String given) {
        return Nearest.of(given, of.optionsMap().keySet().stream().filter(name -> name.startsWith("--"))
                .map(name -> name.substring(2)).toList());
    }

    public static void main(String[] arguments) {
        // Libraries log what their own users want to know; whoever wants it too sets the property.
        if (System.getProperty("org.slf4j.simpleLogger.defaultLogLevel") == null) {
            System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "error");
        }
        System.exit(execute(arguments));
    }
}
