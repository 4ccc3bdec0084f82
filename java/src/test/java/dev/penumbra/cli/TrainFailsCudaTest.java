package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.BackendException;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import tools.jackson.databind.json.JsonMapper;

/** Runs on a GPU that end early, each in a process of its own: what was saved is there, and the message says why. */
@NeedsGpu
class TrainFailsCudaTest {

    private static final long PATIENCE_SECONDS = 120;
    private static final int STEPS = 4000;
    /** Steps after which a run is disturbed, and between its checkpoints. */
    private static final int UNDISTURBED = 25;
    private static final int SAVE_EVERY = 10;

    @TempDir
    Path folder;

    @BeforeEach
    void modelAndData() {
        Cli.model(folder);
        Cli.data(folder.resolve("data.jsonl"), 64);
    }

    private List<String> train(String output, int batchSize, String... more) {
        List<String> arguments = new ArrayList<>(List.of("train", "--device", "cuda", "--model",
                folder.resolve("model").toString(), "--data", folder.resolve("data.jsonl").toString(), "--output",
                folder.resolve(output).toString(), "--seq-len", "64", "--batch-size", Integer.toString(batchSize),
                "--schedule", "constant",
                "--steps", Integer.toString(STEPS), "--save-every", Integer.toString(SAVE_EVERY), "--metrics",
                folder.resolve(output + ".jsonl").toString()));
        arguments.addAll(List.of(more));
        return arguments;
    }

    /** A shell that ignores SIGINT in the background hands that on to what it starts: the JVM's handlers are restored first. */
    private Process start(Class<?> main, List<String> arguments) throws IOException {
        List<String> command = new ArrayList<>(List.of("env", "--default-signal=INT",
                Path.of(System.getProperty("java.home"), "bin", "java").toString(), "--enable-native-access=ALL-UNNAMED",
                "-Dpenumbra.native.path=" + System.getProperty("penumbra.native.path"),
                "-Dpenumbra.cuda.path=" + System.getProperty("penumbra.cuda.path"), "-cp",
                System.getProperty("java.class.path"), main.getName()));
        command.addAll(arguments);
        return new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(folder.resolve("log").toFile()).start();
    }

    private static long lines(Path metrics) {
        try {
            return Files.exists(metrics) ? Files.readString(metrics).lines().count() : 0;
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        }
    }

    private String log() throws IOException {
        return Files.readString(folder.resolve("log"));
    }

    /** The step of the last checkpoint. */
    private int saved(String output) throws IOException {
        try (Stream<Path> files = Files.list(folder.resolve(output))) {
            return files.map(file -> file.getFileName().toString()).filter(name -> name.startsWith("checkpoint-"))
                    .mapToInt(name -> Integer.parseInt(name.substring("checkpoint-".length()))).max().orElse(0);
        }
    }

    /** Runs until there are so many lines of metrics, then interrupts. */
    private void interruptAfter(String output, int lines, Process process) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(PATIENCE_SECONDS);
        while (process.isAlive() && System.nanoTime() < deadline && lines(folder.resolve(output + ".jsonl")) < lines) {
            Thread.sleep(5);
        }
        assertThat(process.isAlive()).as(log()).isTrue();
        new ProcessBuilder("kill", "-INT", Long.toString(process.pid())).start().waitFor();
        assertThat(process.waitFor(PATIENCE_SECONDS, TimeUnit.SECONDS)).isTrue();
        assertThat(process.exitValue()).as(log()).isEqualTo(130);
    }

    /** Goes on from the last checkpoint in a fresh process, a few steps further. */
    private void resumes(String output) throws Exception {
        int from = saved(output);
        int before = (int) lines(folder.resolve(output + ".jsonl"));
        interruptAfter(output, before + 3, start(Main.class, train(output, 1, "--resume")));
        // Every step is told once: what came after the checkpoint has been dropped and told again.
        List<String> metrics = Files.readAllLines(folder.resolve(output + ".jsonl"));
        assertThat(new JsonMapper().readTree(metrics.getLast()).required("step").intValue()).isEqualTo(metrics.size());
        assertThat(saved(output)).isGreaterThan(from);
    }

    @Test
    void anInterruptSavesACheckpointFromWhichItGoesOn() throws Exception {
        interruptAfter("cut", UNDISTURBED, start(Main.class, train("cut", 1)));
        int done = saved("cut");
        assertThat(done).isBetween(UNDISTURBED, STEPS - 1);
        assertThat(log()).contains("Stopped after step " + done + " of " + STEPS).doesNotContain("Exception");
        resumes("cut");
    }

    @Test
    void aRunThatDoesNotFitIsRefusedWithTheNumbers() throws Exception {
        Process process = start(Main.class, train("large", 200000));

        assertThat(process.waitFor(PATIENCE_SECONDS, TimeUnit.SECONDS)).isTrue();
        assertThat(process.exitValue()).as(log()).isEqualTo(1);
        assertThat(log()).containsPattern("penumbra: not enough memory: expected [0-9.,]+ \\S+ to be free, found [0-9.,]+ ")
                .doesNotContain("Exception");
    }

    @Test
    void aKernelsFaultEndsTheRunAndLeavesTheLastCheckpoint() throws Exception {
        Process process = start(Faulting.class, train("fault", 1));

        assertThat(process.waitFor(PATIENCE_SECONDS, TimeUnit.SECONDS)).isTrue();
        assertThat(process.exitValue()).as(log()).isEqualTo(1);
        assertThat(log()).containsIgnoringCase("illegal").contains("penumbra: ").doesNotContain("Exception");
        assertThat(saved("fault")).isBetween(UNDISTURBED - SAVE_EVERY, STEPS - 1);
        resumes("fault");
    }

    /** The command line, and beside it a thread that makes the device write where no memory is. */
    static final class Faulting {

        /** Aligned, and far from what the driver hands out. */
        private static final long NOWHERE = 1L << 20;

        private Faulting() {
        }

        public static void main(String[] arguments) {
            Path metrics = Path.of(List.of(arguments).get(List.of(arguments).indexOf("--metrics") + 1));
            Thread.ofPlatform().daemon().start(() -> {
                while (lines(metrics) < UNDISTURBED) {
                    Thread.onSpinWait();
                }
                // All backends of a device share its primary context: a fault in one of them ends it for all.
                try (Backend backend = Backends.open(Device.cuda(0), 0, true)) {
                    backend.run(new Fill(1, Tensor.deviceView(MemorySegment.ofAddress(NOWHERE), DType.F32, Shape.of(1024))));
                    backend.synchronize();
                } catch (BackendException expected) {
                    System.err.println("fault: " + expected.getMessage());
                }
            });
            System.exit(Main.execute(arguments));
        }
    }
}
