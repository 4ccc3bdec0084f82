package dev.penumbra.backend;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.op.Fill;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import org.junit.jupiter.api.Test;

/** Device memory belongs to arenas, and none of it outlives the backend. */
@NeedsGpu
class LifetimeCudaTest {

    private static final long MIB = 1 << 20;

    @Test
    void twoHundredBackendsLeaveNoMemoryBehind() {
        try (Backend kept = Backends.open(Device.cuda(0), 0, true)) {
            long before = 0;
            for (int i = 0; i < 200; i++) {
                try (Backend backend = Backends.open(Device.cuda(0), 0, true); Arena arena = Arena.ofConfined()) {
                    Tensor tensor = backend.allocate(arena, DType.F32, Shape.of(16 * MIB));
                    backend.run(new Fill(1, tensor));
                }
                if (i == 0) {
                    before = kept.freeBytes().orElseThrow();
                }
            }
            assertThat(before - kept.freeBytes().orElseThrow()).as("bytes lost over 199 backends").isLessThan(8 * MIB);
        }
    }

    @Test
    void closingAnArenaFreesItsMemoryAndEndsItsTensors() {
        try (Backend backend = Backends.open(Device.cuda(0), 0, true)) {
            long before = backend.freeBytes().orElseThrow();
            Tensor tensor;
            try (Arena arena = Arena.ofConfined()) {
                tensor = backend.allocate(arena, DType.U8, Shape.of(256 * MIB));
                assertThat(before - backend.freeBytes().orElseThrow()).isGreaterThanOrEqualTo(256 * MIB);
            }
            assertThat(before - backend.freeBytes().orElseThrow()).isLessThan(8 * MIB);
            assertThatThrownBy(() -> backend.run(new Fill(0, tensor))).isInstanceOf(IllegalStateException.class);
        }
    }

    @Test
    void aRecordingThatFailsSaysWhyAndLeavesTheDeviceUsable() {
        try (Backend backend = Backends.open(Device.cuda(0), 0, true); Arena arena = Arena.ofConfined()) {
            Tensor tensor = backend.allocate(arena, DType.F32, Shape.of(4));
            assertThatThrownBy(() -> backend.capture(arena, () -> {
                backend.run(new Fill(1, tensor));
                throw new IllegalStateException("no more");
            })).isInstanceOf(IllegalStateException.class).hasMessage("no more");
            // What waits for the device ends a recording, and the driver's second complaint is not the one that is told.
            assertThatThrownBy(() -> backend.capture(arena, backend::synchronize)).isInstanceOf(BackendException.class)
                    .hasMessageContaining("the operations enqueued before");
            backend.run(new Fill(2, tensor));
            assertThat(backend.read(tensor).floats()).containsOnly(2);
        }
    }

    @Test
    void aReadIsRefusedOnceItsPlaceIsTakenByLaterOnes() {
        try (Backend backend = Backends.open(Device.cuda(0), 0, true); Arena arena = Arena.ofConfined()) {
            Tensor tensor = backend.allocate(arena, DType.F32, Shape.of(1));
            Readback first = backend.read(tensor);
            for (int i = 0; i < 15; i++) {
                backend.run(new Fill(i + 1, tensor));
                backend.read(tensor);
            }
            assertThat(first.floats()).containsOnly(0);
            backend.read(tensor);
            assertThatThrownBy(first::floats).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("before 16 more reads");
        }
    }

    @Test
    void moreMemoryThanThereIsIsRefusedWithBothNumbers() {
        try (Backend backend = Backends.open(Device.cuda(0), 0, true); Arena arena = Arena.ofConfined()) {
            long free = backend.freeBytes().orElseThrow();
            assertThatThrownBy(() -> backend.allocate(arena, DType.U8, Shape.of(free + 1024 * MIB)))
                    .isInstanceOf(BackendException.class)
                    .hasMessageContaining(String.valueOf(free + 1024 * MIB))
                    .hasMessageContaining("free");
            backend.run(new Fill(0, backend.allocate(arena, DType.F32, Shape.of(4))));
            backend.synchronize();
        }
    }
}
