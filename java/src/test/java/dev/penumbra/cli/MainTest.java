package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import org.junit.jupiter.api.Test;

class MainTest {

    private record Outcome(int code, String out, String err) {
    }

    private static Outcome run(String... arguments) {
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

    @Test
    void doctorNamesTheProcessorAndWhyCudaIsNotUsable() {
        Outcome outcome = run("doctor");
        assertThat(outcome.code()).isZero();
        assertThat(outcome.out()).contains("cpu     cpu,").contains("oneDNN").contains("cuda    not usable: ");
    }

    @Test
    void wrongUsageIsExitCodeTwo() {
        assertThat(run().code()).isEqualTo(2);
        assertThat(run("inspect").code()).isEqualTo(2);
        assertThat(run("inspect", "--model", "x", "--data", "y", "--unknown").err()).contains("--unknown");
    }

    @Test
    void aFailureIsOneLineThatNamesTheFolder() {
        Outcome outcome = run("inspect", "--model", "no/such/folder", "--data", "none.jsonl");
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err().strip()).isEqualTo("penumbra: no/such/folder: expected a model folder, found no folder");
    }
}
