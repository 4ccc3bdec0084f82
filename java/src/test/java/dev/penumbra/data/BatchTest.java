package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;

class BatchTest {

    @Test
    void oneSampleIsARowWithoutPadding() {
        Batch batch = Batch.of(new Sample(new int[]{5, 6, 7}, new boolean[]{false, false, true}));
        assertThat(batch.ids()).containsExactly(5, 6, 7);
        assertThat(batch.positions()).containsExactly(0, 1, 2);
        assertThat(batch.cuSeqlens()).containsExactly(0, 3);
        assertThat(batch.rows()).containsExactly(1);
        assertThat(batch.targets()).containsExactly(7);
        assertThat(batch.realTokens()).isEqualTo(3);
    }
}
