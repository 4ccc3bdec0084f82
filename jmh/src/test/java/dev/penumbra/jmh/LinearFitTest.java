package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.util.List;
import org.junit.jupiter.api.Test;

class LinearFitTest {

    @Test
    void aLineIsFoundAgain() {
        LinearFit fit = LinearFit.through(List.of(new double[]{1, 5}, new double[]{2, 7}, new double[]{4, 11}));

        assertThat(fit.intercept()).isCloseTo(3, within(1e-12));
        assertThat(fit.slope()).isCloseTo(2, within(1e-12));
        assertThat(fit.r2()).isCloseTo(1, within(1e-12));
    }

    @Test
    void aCurveExplainsLess() {
        LinearFit fit = LinearFit.through(List.of(new double[]{0, 0}, new double[]{1, 1}, new double[]{2, 0}));

        assertThat(fit.r2()).isCloseTo(0, within(1e-12));
    }

    @Test
    void pointsAboveOneAnotherAreRefused() {
        assertThatThrownBy(() -> LinearFit.through(List.of(new double[]{1, 1}, new double[]{1, 2})))
                .hasMessageContaining("different x");
    }
}
