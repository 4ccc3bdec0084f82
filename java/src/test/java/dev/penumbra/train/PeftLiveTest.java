package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.io.TempDir;

/**
 * Against PEFT, run now, on configurations that nobody has seen before. The environment variable PENUMBRA_PYTHON names a
 * Python with torch, transformers, peft and safetensors; PENUMBRA_SEED repeats a run, PENUMBRA_CASES asks for more of them.
 */
class PeftLiveTest {

    private static final String PYTHON = System.getenv("PENUMBRA_PYTHON");
    private static final int CASES = Integer.parseInt(System.getenv().getOrDefault("PENUMBRA_CASES", "6"));
    private static final int TIMEOUT_MINUTES = 30;

    @TempDir
    static Path folder;

    @TestFactory
    Stream<DynamicTest> drawnConfigurationsAgreeWithPeft() throws IOException, InterruptedException {
        assumeTrue(PYTHON != null, "PENUMBRA_PYTHON names no Python with PEFT: nothing to compare with");
        String seed = System.getenv().getOrDefault("PENUMBRA_SEED",
                Integer.toString(ThreadLocalRandom.current().nextInt(1 << 30)));
        make(seed);
        List<DynamicTest> tests = new ArrayList<>();
        for (int i = 0; i < CASES; i++) {
            String at = String.format("%03d", i);
            String name = "PENUMBRA_SEED=" + seed + " case " + at;
            tests.add(DynamicTest.dynamicTest(name + " f32", () -> compareF32(name, folder.resolve(at + "-f32"))));
            tests.add(DynamicTest.dynamicTest(name + " bf16", () -> compareBf16(name, at)));
        }
        return tests.stream();
    }

    private static void make(String seed) throws IOException, InterruptedException {
        Path log = folder.resolve("python.log");
        ProcessBuilder making = new ProcessBuilder(PYTHON, "src/test/python/make_fixtures.py", "--draw",
                Integer.toString(CASES), folder.toString(), seed).redirectErrorStream(true).redirectOutput(log.toFile());
        // Models this small are done sooner by one thread; several spin while they wait for each other.
        making.environment().put("OMP_NUM_THREADS", "1");
        Process python = making.start();
        boolean ended = python.waitFor(TIMEOUT_MINUTES, TimeUnit.MINUTES);
        python.destroyForcibly();
        assertThat(ended && python.waitFor() == 0)
                .as(() -> PYTHON + ": expected fixtures within " + TIMEOUT_MINUTES + " minutes, found " + read(log))
                .isTrue();
    }

    private static String read(Path log) {
        try {
            return Files.readString(log);
        } catch (IOException unreadable) {
            return unreadable.toString();
        }
    }

    /**
     * A neuron whose input comes within rounding of zero during the twenty steps falls on one side or the other by the order in
     * which sums are made, and training goes on from there. So where the losses of two threads are off, those of one, whose
     * sums have another order, have to agree.
     */
    private static void compareF32(String name, Path fixture) throws IOException {
        try (PeftFixture f = open(fixture, 2); PeftFixture again = open(fixture, 1)) {
            String config = name + " f32, " + f.model.config() + ", " + f.adapter.config();
            PeftParity.Worst worst = PeftParity.requireF32(config, f);
            double losses = PeftParity.worstOfTwentyLosses(config, f, true);
            boolean kink = losses >= PeftParity.TWENTY_LOSSES;
            System.out.printf(
                    "%s: %s, 20 losses %.1e%s; %d neurons moved off ReLU's kink; drawn again: %d chaotic, %d beyond bf16%n",
                    config, worst, losses,
                    kink ? String.format(", on one thread %.1e", PeftParity.requireTwentyLosses(config, again, true)) : "",
                    f.told.required("kinks").required("moved").intValue(), f.told.required("chaotic").intValue(),
                    f.told.required("noisy").intValue());
        }
    }

    private static PeftFixture open(Path fixture, int threads) throws IOException {
        return new PeftFixture(fixture, Backends.open(Device.CPU, threads, true), DType.F32);
    }

    private static void compareBf16(String name, String at) throws IOException {
        List<PeftFixture> models = new ArrayList<>();
        try (Stream<Path> made = Files.list(folder)) {
            for (Path fixture : made.filter(f -> f.getFileName().toString().startsWith(at + "-bf16-")).sorted().toList()) {
                models.add(new PeftFixture(fixture, Backends.open(Device.CPU, 2, true), DType.BF16));
            }
            assertThat(models).as(name + ": models").hasSizeGreaterThan(1);
            PeftFixture first = models.getFirst();
            String config = name + " bf16, " + first.model.config() + ", " + first.adapter.config();
            System.out.println(config + ": " + PeftParity.requireBf16(config, models));
        } finally {
            models.forEach(PeftFixture::close);
        }
    }
}
