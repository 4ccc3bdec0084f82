package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.Device;
import org.junit.jupiter.api.Test;

class OtherWorkTest {

    @Test
    void aBusyMachineIsRefusedSoonerWhereTheProcessorIsMeasured() {
        assertThatCode(() -> OtherWork.requireLittle(0.02, Device.Kind.CPU)).doesNotThrowAnyException();
        assertThatCode(() -> OtherWork.requireLittle(0.1, Device.Kind.CUDA)).doesNotThrowAnyException();
        assertThatThrownBy(() -> OtherWork.requireLittle(0.1, Device.Kind.CPU)).isInstanceOf(IllegalStateException.class)
                .hasMessageContaining("expected other processes to take 3 % of the machine at most, found 10 %");
        assertThatThrownBy(() -> OtherWork.requireLittle(0.3, Device.Kind.CUDA)).isInstanceOf(IllegalStateException.class);
    }
}
