package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

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

    private static void requireRefused(String message, int[] positions, int[] borders, int[] rows, int[] targets,
            int longest) {
        assertThatThrownBy(() -> new Batch(new int[]{5, 6, 7}, positions, borders, rows, targets, longest, 3))
                .isInstanceOf(IllegalArgumentException.class).hasMessageContaining(message);
    }

    @Test
    void whatKernelsWouldReadOutsideTheBatchIsRefused() {
        int[] places = {0, 1, 2};
        int[] whole = {0, 3};
        requireRefused("found 2 and 1", new int[]{0, 1}, whole, new int[]{0}, new int[]{6}, 3);
        requireRefused("found 3 and 2", places, whole, new int[]{0}, new int[]{6, 7}, 3);
        requireRefused("borders that ascend from 0, found none", places, new int[0], new int[0], new int[0], 3);
        requireRefused("found a first one of 1", places, new int[]{1, 3}, new int[0], new int[0], 3);
        requireRefused("found one from 2 to 1", places, new int[]{0, 2, 1}, new int[0], new int[0], 3);
        requireRefused("found one from 0 to 4", places, new int[]{0, 4}, new int[0], new int[0], 4);
        requireRefused("a sample 0 of at most 2 tokens", places, whole, new int[0], new int[0], 2);
        requireRefused("found 3 at 1", places, whole, new int[]{1, 3}, new int[]{7, 7}, 3);
        requireRefused("found 1 at 1", places, whole, new int[]{1, 1}, new int[]{7, 7}, 3);
        requireRefused("found -1 at 0", places, whole, new int[]{-1}, new int[]{7}, 3);
    }
}
