package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import org.junit.jupiter.api.Test;

class PackingReportTest {

    @Test
    void tokensRowsAndLengthsAreCounted() {
        List<Sample> samples = List.of(sample(20), sample(12), sample(32), sample(2), sample(1));
        PackingReport report = PackingReport.of(Dataset.of(samples), 32, 0);
        assertThat(report.rows()).isEqualTo(2);
        assertThat(report.tokens()).isEqualTo(66);
        assertThat(report.packed()).as("the last tokens of those that do not fill a row are left out").isEqualTo(63);
        assertThat(report.supervised()).isEqualTo(62);
        assertThat(report.longest()).isEqualTo(32);
        assertThat(report.samples()).as("the last has nothing to learn").isEqualTo(4);
        assertThat(report.efficiency()).isEqualTo(63.0 / 64);
        assertThat(report.paddedEfficiency()).isEqualTo(66.0 / 128);
        assertThat(report.histogram()).containsExactly(1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1);
    }

    private static Sample sample(int length) {
        boolean[] supervised = new boolean[length];
        for (int i = 1; i < length; i++) {
            supervised[i] = true;
        }
        return new Sample(new int[length], supervised);
    }
}
