package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.train.StepMetrics;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;

class ProgressTest {

    private final StringWriter text = new StringWriter();

    private static StepMetrics step(int step) {
        return new StepMetrics(step, 2.5, 1e-3, 1, 100, 200, 500);
    }

    @Test
    void aTerminalsBarIsRewrittenAndEndsItsLine() {
        Progress progress = new Progress(new PrintWriter(text), 4, true);
        progress.onStep(step(2));
        progress.onStep(step(4));
        assertThat(text.toString())
                .isEqualTo("\r[############............] 2/4  loss 2.5000  200 tokens/s  ETA 0:01   "
                        + "\r[########################] 4/4  loss 2.5000  200 tokens/s  ETA 0:00   "
                        + System.lineSeparator());
    }

    @Test
    void anEvaluationBetweenStepsStandsOnALineOfItsOwn() {
        Progress progress = new Progress(new PrintWriter(text), 4, true);
        progress.onStep(step(1));
        progress.onEval(1, 0);
        progress.onSave(1, Path.of("out"));
        assertThat(text.toString().lines().skip(1)).element(0).asString().endsWith("ETA 0:02   ");
        assertThat(text.toString().lines().skip(2)).containsExactly("step 1: evaluation loss 0.0000, perplexity 1.00",
                "step 1: saved out");
    }

    @Test
    void elsewhereThereAreNoControlCodesAndFewLines() {
        Progress progress = new Progress(new PrintWriter(text), 100, false);
        for (int i = 1; i <= 100; i++) {
            progress.onStep(step(i));
        }
        assertThat(text.toString()).doesNotContain("\r").hasLineCount(2);
    }

    @Test
    void durationsReadAsClocks() {
        assertThat(Progress.duration(7.4)).isEqualTo("0:07");
        assertThat(Progress.duration(750)).isEqualTo("12:30");
        assertThat(Progress.duration(11_100)).isEqualTo("3:05:00");
    }
}
