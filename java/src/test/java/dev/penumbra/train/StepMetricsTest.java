package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import org.junit.jupiter.api.Test;

class StepMetricsTest {

    @Test
    void aStepIsALineForPeople() {
        assertThat(new StepMetrics(7, 2.34567, 3e-4, 0.61234, 512, 10240.4, 50.04))
                .hasToString("step 7  loss 2.3457  lr 3.00e-04  gradient norm 0.612  10240 tokens/s  50.0 ms");
    }

    @Test
    void aSparseStepSaysWhatItComputed() {
        StepSparsity mlps = new StepSparsity(List.of(0.25, 0.75), List.of(), List.of(), List.of());
        StepSparsity attention = new StepSparsity(List.of(0.3, 0.3), List.of(), List.of(), List.of());

        assertThat(new StepMetrics(1, 2, 1e-3, 1, 512, 1000, 512, mlps, attention)).asString()
                .endsWith("512.0 ms  MLP 50%  attention 30%");
    }
}
