package dev.penumbra;

import java.io.BufferedReader;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** A second Java process that runs a class of the tests. */
public final class ChildJvm implements AutoCloseable {

    private final Process process;
    private final BufferedReader output;

    private ChildJvm(Process process) {
        this.process = process;
        this.output = process.inputReader();
    }

    /** Starts {@code main}; what it prints, errors too, comes from {@link #readLine}. */
    public static ChildJvm start(Class<?> main, String... arguments) throws IOException {
        return new ChildJvm(new ProcessBuilder(command(main, arguments)).redirectErrorStream(true).start());
    }

    /** Starts {@code main} such that no file that it writes grows beyond {@code kib}. */
    public static ChildJvm startWithFileLimit(int kib, Class<?> main, String... arguments) throws IOException {
        List<String> command = new ArrayList<>(List.of("bash", "-c", "ulimit -f " + kib + " && exec \"$@\"", "limited"));
        command.addAll(command(main, arguments));
        return new ChildJvm(new ProcessBuilder(command).redirectErrorStream(true).start());
    }

    /**
     * Starts {@code main}, which may use the native library, with a heap that neither grows nor shrinks: what the process grows
     * by is memory beside it.
     */
    public static ChildJvm startWithFixedHeap(int mib, Class<?> main, String... arguments) throws IOException {
        List<String> command = command(main, arguments);
        command.addAll(1, List.of("-Xms" + mib + "m", "-Xmx" + mib + "m", "-XX:+AlwaysPreTouch",
                "-Dpenumbra.native.path=" + System.getProperty("penumbra.native.path", "")));
        return new ChildJvm(new ProcessBuilder(command).redirectErrorStream(true).start());
    }

    private static List<String> command(Class<?> main, String... arguments) {
        // Started fast: no optimizing compiler, one collector thread; a limit on files would stop the counters' file.
        List<String> command = new ArrayList<>(List.of(Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData", "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"), main.getName()));
        command.addAll(List.of(arguments));
        return command;
    }

    /** The next line, or null when the process has ended. */
    public String readLine() throws IOException {
        return output.readLine();
    }

    /** SIGKILL, and the end of it; what it has printed can still be read. */
    public void kill() throws InterruptedException {
        // Of the handle: the process's own method closes the output too.
        process.toHandle().destroyForcibly();
        process.waitFor();
    }

    public int waitFor() throws InterruptedException {
        return process.waitFor();
    }

    @Override
    public void close() throws IOException {
        process.destroyForcibly();
        output.close();
    }
}
