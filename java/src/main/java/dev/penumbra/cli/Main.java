package dev.penumbra.cli;

import dev.penumbra.backend.BackendException;
import dev.penumbra.backend.NativeLibraryException;
import dev.penumbra.data.DataException;
import dev.penumbra.io.SafetensorsException;
import java.io.IOException;
import java.nio.file.NoSuchFileException;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;
import picocli.CommandLine.ScopeType;

/** The command line: exit code 0 when all went well, 1 when a command failed, 2 for wrong usage. */
@Command(name = "penumbra", description = "LoRA fine-tuning inside the JVM that computes only what the model uses.", mixinStandardHelpOptions = true, versionProvider = Main.Version.class, subcommands = {
        DoctorCommand.class, DemoCommand.class, TrainCommand.class, EvalCommand.class, GenerateCommand.class,
        InspectCommand.class, ExportCommand.class})
public final class Main implements Runnable {

    @Option(names = "--verbose", scope = ScopeType.INHERIT, description = "Print the trace of an error.")
    private boolean verbose;

    @CommandLine.Spec
    private CommandLine.Model.CommandSpec spec;

    /** The version of the jar, or that of a build folder. */
    static final class Version implements CommandLine.IVersionProvider {
        @Override
        public String[] getVersion() {
            String version = Main.class.getPackage().getImplementationVersion();
            return new String[]{"penumbra " + (version == null ? "(classes of a build)" : version)};
        }
    }

    @Override
    public void run() {
        throw new CommandLine.ParameterException(spec.commandLine(), "expected a command");
    }

    /** Parses and runs, and turns failures into one readable line. */
    static int execute(String... arguments) {
        Main main = new Main();
        CommandLine line = new CommandLine(main);
        line.setCaseInsensitiveEnumValuesAllowed(true);
        line.setExecutionExceptionHandler((failure, command, parsed) -> {
            if (main.verbose || !isExplained(failure)) {
                failure.printStackTrace(command.getErr());
            }
            command.getErr().println("penumbra: " + message(failure));
            return CommandLine.ExitCode.SOFTWARE;
        });
        return line.execute(arguments);
    }

    /** Failures whose message says what was expected and found; anything else is a defect, and its trace is wanted. */
    private static boolean isExplained(Exception failure) {
        return failure instanceof IOException
                || failure instanceof java.io.UncheckedIOException
                || failure instanceof dev.penumbra.train.TrainingException
                || failure instanceof dev.penumbra.model.ModelException
                || failure instanceof DataException
                || failure instanceof SafetensorsException
                || failure instanceof BackendException
                || failure instanceof NativeLibraryException
                || failure instanceof IllegalArgumentException;
    }

    private static String message(Exception failure) {
        if (failure instanceof NoSuchFileException) {
            return failure.getMessage() + ": expected a file, found none";
        }
        return failure.getMessage() == null ? failure.toString() : failure.getMessage();
    }

    public static void main(String[] arguments) {
        // Libraries log what their own users want to know; whoever wants it too sets the property.
        if (System.getProperty("org.slf4j.simpleLogger.defaultLogLevel") == null) {
            System.setProperty("org.slf4j.simpleLogger.defaultLogLevel", "error");
        }
        System.exit(execute(arguments));
    }
}
