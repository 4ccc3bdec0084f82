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
                .hasMessageContaining("found other processes taking 10 % of it");
        assertThatThrownBy(() -> OtherWork.requireLittle(0.3, Device.Kind.CUDA)).isInstanceOf(IllegalStateException.class);
    }
}
