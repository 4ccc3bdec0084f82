package dev.penumbra.cli;

import dev.penumbra.DemoModel;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** The command line in this process, and something to run it on. */
final class Cli {

    record Outcome(int code, String out, String err) {
    }

    private Cli() {
    }

    static Outcome run(String... arguments) {
        PrintStream out = System.out;
        PrintStream err = System.err;
        ByteArrayOutputStream caughtOut = new ByteArrayOutputStream();
        ByteArrayOutputStream caughtErr = new ByteArrayOutputStream();
        System.setOut(new PrintStream(caughtOut, true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(caughtErr, true, StandardCharsets.UTF_8));
        try {
            int code = Main.execute(arguments);
            return new Outcome(code, caughtOut.toString(StandardCharsets.UTF_8), caughtErr.toString(StandardCharsets.UTF_8));
        } finally {
            System.setOut(out);
            System.setErr(err);
        }
    }

    /** The bundled checkpoint in a folder of its own. */
    static Path model(Path under) {
        try {
            return DemoModel.extract(under.resolve("model"));
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        }
    }

    /** A file of short prompts and completions. */
    static Path data(Path file, int samples) {
        List<String> lines = new ArrayList<>();
        for (int i = 0; i < samples; i++) {
            lines.add("{\"prompt\":\"table " + i + "\\n\",\"completion\":\"It stands in row " + i % 7 + " of the room.\"}");
        }
        try {
            return Files.write(file, lines);
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        }
    }
}
