package dev.penumbra.sparse;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import org.junit.jupiter.api.Test;

class NeuronOrderTest {

    private static final NeuronOrder ORDER = new NeuronOrder(2, 0, 3, 1);

    @Test
    void onlyPermutationsAreOrders() {
        assertThatThrownBy(() -> new NeuronOrder(0, 1, 1)).hasMessageContaining("found 1 again at place 2");
        assertThatThrownBy(() -> new NeuronOrder(0, 3, 1)).hasMessageContaining("expected each neuron from 0 to 2 once")
                .hasMessageContaining("found 3 at place 1");
        assertThatThrownBy(() -> ORDER.apply(1, 2, 3)).hasMessageContaining("expected 4 values of 4 neurons, found 3");
    }

    @Test
    void valuesRowsAndColumnsGoToTheirNeuronsPlaces() {
        assertThat(ORDER.apply(10, 11, 12, 13)).containsExactly(12, 10, 13, 11);
        assertThat(ORDER.applyToRows(new float[]{0, 1, 10, 11, 20, 21, 30, 31}, 2)).containsExactly(20, 21, 0, 1, 30, 31, 10,
                11);
        assertThat(ORDER.applyToColumns(new float[]{0, 1, 2, 3, 10, 11, 12, 13}, 2)).containsExactly(2, 0, 3, 1, 12, 10, 13,
                11);
        try (Arena arena = Arena.ofConfined()) {
            Tensor source = Tensor.of(arena, 0, 1, 10, 11, 20, 21, 30, 31).reshape(4, 2);
            Tensor target = Tensor.of(arena, new int[8]).reshape(4, 2);
            ORDER.copyRows(source, target);
            assertThat(target.reshape(8).toInts()).containsExactly(20, 21, 0, 1, 30, 31, 10, 11);
        }
    }

    @Test
    void theInverseUndoes() {
        assertThat(ORDER.inverse().apply(ORDER.apply(5, 6, 7, 8))).containsExactly(5, 6, 7, 8);
        assertThat(ORDER.inverse().inverse()).isEqualTo(ORDER).hasSameHashCodeAs(ORDER);
        assertThat(ORDER.isIdentity()).isFalse();
        assertThat(NeuronOrder.identity(4).isIdentity()).isTrue();
    }
}
