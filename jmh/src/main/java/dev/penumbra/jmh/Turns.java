package dev.penumbra.jmh;

import java.io.BufferedReader;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * Processes of {@code steps --turn} that take turns: while one trains, the others wait for a line on their standard input. Memory
 * has to hold all of them.
 */
final class Turns {

    /** What a process prints when it waits for its turn; what it prints else is its result. */
    static final String READY = "ready";

    private record Waiting(List<String> command, Process process, BufferedReader output) {

        static Waiting start(List<String> command) throws IOException {
            Process process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
            Waiting started = new Waiting(command, process, process.inputReader());
            started.await();
            return started;
        }

        /** Lets it go on to the end of its turn; returns its result, or null while it has none. */
        @Nullable
        String turn() throws IOException, InterruptedException {
            process.getOutputStream().write('\n');
            process.getOutputStream().flush();
            String line = await();
            if (line.equals(READY)) {
                return null;
            }
            if (process.waitFor() != 0) {
                throw failure();
            }
            return line;
        }

        private String await() throws IOException {
            String line = output.readLine();
            if (line == null) {
                throw failure();
            }
            return line;
        }

        private IOException failure() {
            return new IOException(
                    "expected Penumbra to print a line of JSON, found a failure of " + String.join(" ", command));
        }
    }

    private Turns() {
    }

    /** Runs them to their ends; returns their results, in the order of the commands. */
    static List<String> run(List<List<String>> commands) throws IOException, InterruptedException {
        List<Waiting> processes = new ArrayList<>();
        try {
            for (List<String> command : commands) {
                processes.add(Waiting.start(command));
            }
            // All have as many turns.
            List<String> results = new ArrayList<>();
            while (results.isEmpty()) {
                for (Waiting process : processes) {
                    String result = process.turn();
                    if (result != null) {
                        results.add(result);
                    }
                }
            }
            return results;
        } finally {
            processes.forEach(process -> process.process().destroy());
        }
    }
}
