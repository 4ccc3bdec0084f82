package dev.penumbra.cli;

import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;
import jdk.jshell.DeclarationSnippet;
import jdk.jshell.EvalException;
import jdk.jshell.JShell;
import jdk.jshell.JShellException;
import jdk.jshell.Snippet;
import jdk.jshell.Snippet.Status;
import jdk.jshell.SnippetEvent;
import jdk.jshell.SourceCodeAnalysis.Completeness;
import jdk.jshell.SourceCodeAnalysis.CompletionInfo;
import jdk.jshell.execution.DirectExecutionControl;
import jdk.jshell.spi.ExecutionControl;
import jdk.jshell.spi.ExecutionControlProvider;
import jdk.jshell.spi.ExecutionEnv;

/**
 * Runs Java snippets in this JVM, on the calling thread. The JDK's own tool goes on after a snippet that failed and then
 * reports success; here the first failure ends the script.
 */
final class JshellScript implements AutoCloseable {

    /** A snippet failed: where, why, and the snippet itself. */
    static final class Failed extends Exception {
        private static final long serialVersionUID = 1;

        Failed(String message, Throwable cause) {
            super(message, cause);
        }
    }

    /** Snippets run on the thread that evaluates them, so that what a confined arena owns is theirs throughout. */
    private static final ExecutionControlProvider THIS_THREAD = new ExecutionControlProvider() {
        @Override
        public String name() {
            return "this-thread";
        }

        @Override
        public ExecutionControl generate(ExecutionEnv env, Map<String, String> parameters) {
            return new DirectExecutionControl();
        }
    };

    private final JShell shell;

    /** @param arguments what snippets see as {@code String[] args} */
    JshellScript(String imports, List<String> arguments) throws Failed {
        shell = JShell.builder().executionEngine(THIS_THREAD, Map.of())
                .compilerOptions("--class-path", System.getProperty("java.class.path")).build();
        run("imports", imports);
        run("arguments",
                "String[] args = {" + arguments.stream().map(JshellScript::literal).collect(Collectors.joining(", "))
                        + "};");
    }

    private static String literal(String text) {
        return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n").replace("\r", "\\r") + '"';
    }

    /** @throws Failed at the first snippet that does not compile, throws, or waits for what no later snippet declares */
    void run(String name, String source) throws Failed {
        String pending = "";
        int line = 0;
        int start = 1;
        for (String text : source.split("\\R", -1)) {
            line++;
            start = pending.isBlank() ? line : start;
            pending = evaluateWhole(name, start, line, pending + text + "\n");
        }
        if (!pending.isBlank()) {
            throw new Failed(name + " line " + start + ": expected the end of a snippet, found the end of the script\n"
                    + shown(pending), null);
        }
        requireResolved(name);
    }

    /** Evaluates the snippets that lines hold whole, as the JDK's tool divides them; returns what needs a further line. */
    private String evaluateWhole(String name, int start, int line, String lines) throws Failed {
        String rest = lines;
        int first = start;
        while (true) {
            CompletionInfo next = shell.sourceCodeAnalysis().analyzeCompletion(rest);
            if (next.completeness() == Completeness.EMPTY) {
                return "";
            }
            if (!next.completeness().isComplete()) {
                return rest;
            }
            evaluate(name + " line " + first, next.source());
            rest = next.remaining();
            first = line;
        }
    }

    private void requireResolved(String name) throws Failed {
        for (Snippet snippet : shell.snippets().toList()) {
            Status status = shell.status(snippet);
            if (status == Status.RECOVERABLE_DEFINED || status == Status.RECOVERABLE_NOT_DEFINED) {
                String missing = shell.unresolvedDependencies((DeclarationSnippet) snippet)
                        .collect(Collectors.joining(", "));
                throw new Failed(
                        name + ": expected a declaration of " + missing + ", found none\n" + shown(snippet.source()),
                        null);
            }
        }
    }

    private void evaluate(String at, String snippet) throws Failed {
        for (SnippetEvent event : shell.eval(snippet)) {
            if (event.status() == Status.REJECTED) {
                String errors = shell.diagnostics(event.snippet()).filter(d -> d.isError())
                        .map(d -> oneLine(d.getMessage(Locale.ROOT))).collect(Collectors.joining("; "));
                throw new Failed(at + ": " + errors + "\n" + shown(snippet), null);
            }
            JShellException thrown = event.exception();
            if (thrown != null) {
                String kind = thrown instanceof EvalException e
                        ? e.getExceptionClassName()
                        : thrown.getClass().getSimpleName();
                throw new Failed(
                        at + ": " + kind + ": " + oneLine(String.valueOf(thrown.getMessage())) + "\n" + shown(snippet),
                        thrown);
            }
        }
    }

    private static String oneLine(String message) {
        return message.strip().replaceAll("\\s*\\R\\s*", ", ");
    }

    private static String shown(String snippet) {
        return snippet.strip().indent(4).stripTrailing();
    }

    @Override
    public void close() {
        shell.close();
    }
}
