package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import tools.jackson.databind.json.JsonMapper;

/** A run in a process of its own that is told to end. */
class InterruptTest {

    private static final long PATIENCE_SECONDS = 120;

    @TempDir
    Path folder;

    private List<String> train(String output, String... more) {
        List<String> arguments = new ArrayList<>(List.of("train", "--model", folder.resolve("model").toString(), "--data",
                folder.resolve("data.jsonl").toString(), "--output", folder.resolve(output).toString(), "--seq-len", "64",
                "--batch-size", "1", "--steps", "200", "--threads", "1", "--metrics",
                folder.resolve(output + ".jsonl").toString()));
        arguments.addAll(List.of(more));
        return arguments;
    }

    /** A shell that ignores SIGINT in the background hands that on to what it starts: the JVM's handlers are restored first. */
    private Process start(List<String> arguments) throws IOException {
        List<String> command = new ArrayList<>(List.of("env", "--default-signal=INT",
                Path.of(System.getProperty("java.home"), "bin", "java").toString(), "--enable-native-access=ALL-UNNAMED",
                "-Dpenumbra.native.path=" + System.getProperty("penumbra.native.path"), "-cp",
                System.getProperty("java.class.path"), Main.class.getName()));
        command.addAll(arguments);
        return new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(folder.resolve("log").toFile()).start();
    }

    private List<Double> losses(String output) throws IOException {
        JsonMapper json = new JsonMapper();
        return Files.readAllLines(folder.resolve(output + ".jsonl")).stream()
                .map(line -> json.readTree(line).path("loss").asDouble()).toList();
    }

    @ParameterizedTest
    @CsvSource({"INT, 130", "TERM, 143"})
    void aRunThatIsToldToEndSavesACheckpointFromWhichItGoesOn(String signal, int code) throws Exception {
        Cli.model(folder);
        Cli.data(folder.resolve("data.jsonl"), 64);
        Process process = start(train("cut"));
        Path metrics = folder.resolve("cut.jsonl");
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(PATIENCE_SECONDS);
        while (process.isAlive() && System.nanoTime() < deadline
                && !(Files.exists(metrics) && Files.readString(metrics).lines().count() > 3)) {
            Thread.sleep(20);
        }
        assertThat(process.isAlive()).as(Files.readString(folder.resolve("log"))).isTrue();
        new ProcessBuilder("kill", "-" + signal, Long.toString(process.pid())).start().waitFor();
        assertThat(process.waitFor(PATIENCE_SECONDS, TimeUnit.SECONDS)).isTrue();
        String log = Files.readString(folder.resolve("log"));
        assertThat(process.exitValue()).as(log).isEqualTo(code);
        int done = losses("cut").size();
        assertThat(done).as("steps before the end").isBetween(4, 199);
        assertThat(log).contains("step " + done + ": saved", "Stopped after step " + done + " of 200")
                .doesNotContain("Exception");
        try (Stream<Path> files = Files.list(folder.resolve("cut"))) {
            assertThat(files.map(file -> file.getFileName().toString())).contains("checkpoint-" + done);
        }

        assertThat(Cli.run(train("cut", "--resume").toArray(String[]::new)).code()).isZero();
        assertThat(Cli.run(train("whole").toArray(String[]::new)).code()).isZero();
        assertThat(losses("cut")).isEqualTo(losses("whole"));
    }
}
