package dev.penumbra.cli;

import dev.penumbra.io.TextFiles;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.Callable;
import jdk.jshell.tool.JavaShellToolBuilder;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Parameters;

/** A Java shell with Penumbra on its class path, imported, and allowed to use its native library. */
@Command(name = "jshell", description = "Open a Java shell with Penumbra imported, or run a script; a snippet that fails ends it with exit code 1.", mixinStandardHelpOptions = true)
final class JshellCommand implements Callable<Integer> {

    static final String IMPORTS = """
            import dev.penumbra.*;
            import dev.penumbra.backend.*;
            import dev.penumbra.backend.op.*;
            import dev.penumbra.data.*;
            import dev.penumbra.data.JsonlOptions.LossOn;
            import dev.penumbra.expose.*;
            import dev.penumbra.io.*;
            import dev.penumbra.lora.*;
            import dev.penumbra.model.*;
            import dev.penumbra.predict.*;
            import dev.penumbra.sparse.*;
            import dev.penumbra.tensor.*;
            import dev.penumbra.train.*;
            import java.io.*;
            import java.lang.foreign.*;
            import java.nio.file.*;
            import java.util.*;
            import java.util.stream.*;
            """;

    @Parameters(index = "0", arity = "0..1", paramLabel = "SCRIPT", description = "Java snippets; without it, a shell.")
    private @Nullable Path script;

    @Parameters(index = "1..*", paramLabel = "ARGUMENT", description = "What the script sees as args.")
    private List<String> arguments = List.of();

    @Override
    public Integer call() throws Exception {
        if (script == null) {
            return shell();
        }
        try (JshellScript runner = new JshellScript(IMPORTS, arguments)) {
            runner.run(script.toString(), TextFiles.read(script));
        }
        return 0;
    }

    private static int shell() throws Exception {
        Path imports = Files.createTempFile("penumbra", ".jsh");
        try {
            Files.writeString(imports, IMPORTS);
            return JavaShellToolBuilder.builder().start("--class-path", System.getProperty("java.class.path"),
                    "--startup", imports.toString(), "--startup", "PRINTING",
                    "-R--enable-native-access=ALL-UNNAMED", "-R-Dorg.slf4j.simpleLogger.defaultLogLevel=error");
        } finally {
            Files.deleteIfExists(imports);
        }
    }
}
