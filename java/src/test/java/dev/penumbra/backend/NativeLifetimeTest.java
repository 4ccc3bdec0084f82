package dev.penumbra.backend;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Misuse of the native backend is an exception with a readable message, never a crash. */
class NativeLifetimeTest {

    private static final FrozenWeight.Form FORM = new FrozenWeight.Form(5, 3, DType.F32, true);

    private Backend cpu;
    private Arena arena;

    @BeforeEach
    void open() {
        cpu = Backends.open(Device.CPU, 1, false);
        arena = Arena.ofConfined();
    }

    @AfterEach
    void close() {
        arena.close();
        cpu.close();
    }

    private Tensor tensor(long... dims) {
        return cpu.allocate(arena, DType.F32, Shape.of(dims));
    }

    private static Gemm product(Backend backend, Arena arena, Tensor a, FrozenWeight w, Tensor d) {
        Gemm bare = Gemm.forward(a, w, d).build();
        long bytes = backend.workspaceBytes(bare);
        Tensor space = backend.allocate(arena, DType.U8, Shape.of(Math.max(1, bytes)));
        return Gemm.forward(a, w, d).workspace(space).build();
    }

    @Test
    void describesWhatComputes() {
        assertThat(cpu.describe()).isNotBlank();
        assertThat(cpu.device()).isEqualTo(Device.CPU);
        assertThat(cpu.internalBytes()).isNotNegative();
    }

    @Test
    void allocatesZeroedAlignedMemory() {
        Tensor t = tensor(3, 5);
        assertThat(t.address() % 256).isZero();
        assertThat(t.toFloats()).containsOnly(0);
    }

    @Test
    void namesTheOperationAndTheOperandOfAWrongShape() {
        assertThatThrownBy(
                () -> cpu.run(new LayerNormForward(tensor(2, 3), tensor(4), tensor(3), 1e-5f, tensor(2, 3), null, null)))
                .isInstanceOfSatisfying(
                        BackendException.class,
                        e -> assertThat(e.status()).isEqualTo(BackendException.Status.INVALID_ARGUMENT))
                .hasMessageContaining("layer_norm")
                .hasMessageContaining("gamma");
    }

    @Test
    void refusesTensorsWhoseOwnerClosed() {
        Tensor gone;
        try (Arena brief = Arena.ofConfined()) {
            gone = cpu.allocate(brief, DType.F32, Shape.of(4));
        }
        assertThatThrownBy(() -> cpu.run(new Fill(1, gone)))
                .isInstanceOf(IllegalStateException.class)
                .hasMessageContaining("F32[4]")
                .hasMessageContaining("closed");
    }

    @Test
    void refusesMemoryOfAnotherDevice() {
        Tensor device = Tensor.deviceView(MemorySegment.ofAddress(0x1000), DType.F32, Shape.of(4));
        assertThatThrownBy(() -> cpu.run(new Fill(1, device)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("expected memory of cpu");
    }

    @Test
    void refusesWeightsWhoseOwnerClosed() {
        FrozenWeight gone;
        try (Arena brief = Arena.ofConfined()) {
            gone = cpu.pack(brief, FORM, List.of(tensor(5, 3)));
        }
        assertThatThrownBy(() -> cpu.run(Gemm.forward(tensor(2, 3), gone, tensor(2, 5)).build()))
                .isInstanceOf(IllegalStateException.class)
                .hasMessageContaining("weight F32[5, 3]");
    }

    @Test
    void refusesWeightsOfAnotherBackend() {
        try (Backend other = Backends.open(Device.CPU, 1, false)) {
            FrozenWeight weight = other.pack(arena, FORM, List.of(tensor(5, 3)));
            assertThatThrownBy(() -> cpu.run(Gemm.forward(tensor(2, 3), weight, tensor(2, 5)).build()))
                    .isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("another backend");
        }
    }

    @Test
    void packedWeightsDoNotNeedTheirPartsAnyMore() {
        FrozenWeight weight;
        try (Arena brief = Arena.ofConfined()) {
            Tensor part = cpu.allocate(brief, DType.F32, Shape.of(5, 3));
            cpu.run(new Fill(2, part));
            weight = cpu.pack(arena, FORM, List.of(part));
        }
        Tensor x = tensor(2, 3);
        Tensor d = tensor(2, 5);
        cpu.run(new Fill(1, x));
        cpu.run(product(cpu, arena, x, weight, d));
        assertThat(d.toFloats()).containsOnly(6);
    }

    @Test
    void refusesPartsThatDoNotMakeTheWeight() {
        assertThatThrownBy(() -> cpu.pack(arena, FORM, List.of(tensor(4, 3))))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("5 rows")
                .hasMessageContaining("4");
        assertThatThrownBy(() -> cpu.pack(arena, FORM, List.of(tensor(5, 4))))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("[rows, 3]");
    }

    @Test
    void refusesAWorkspaceThatIsTooSmall() {
        FrozenWeight weight = cpu.pack(arena, new FrozenWeight.Form(64, 64, DType.F32, true), List.of(tensor(64, 64)));
        Tensor rows = Tensor.of(arena, 0, 1);
        var op = new dev.penumbra.backend.op.LinearCrossEntropy(
                tensor(8, 64), weight, rows, rows, tensor(1), tensor(1), tensor(8, 64), null);
        assertThat(cpu.workspaceBytes(op)).isPositive();
        assertThatThrownBy(() -> cpu.run(op)).isInstanceOf(BackendException.class).hasMessageContaining("workspace");
    }

    @Test
    void nothingWorksAfterCloseAndClosingTwiceIsFine() {
        Tensor t = tensor(4);
        FrozenWeight weight = cpu.pack(arena, FORM, List.of(tensor(5, 3)));
        Gemm op = Gemm.forward(tensor(2, 3), weight, tensor(2, 5)).build();
        cpu.close();
        cpu.close();
        assertThatThrownBy(() -> cpu.run(new Fill(1, t))).isInstanceOf(IllegalStateException.class)
                .hasMessageContaining("closed");
        assertThatThrownBy(() -> cpu.run(op)).isInstanceOf(IllegalStateException.class);
        assertThatThrownBy(() -> cpu.workspaceBytes(op)).isInstanceOf(IllegalStateException.class);
        assertThatThrownBy(() -> cpu.allocate(arena, DType.F32, Shape.of(1))).isInstanceOf(IllegalStateException.class);
        assertThatThrownBy(() -> cpu.synchronize()).isInstanceOf(IllegalStateException.class);
    }

    @Test
    void refusesCopiesBetweenDifferentShapes() {
        assertThatThrownBy(() -> cpu.upload(tensor(2, 3), tensor(3, 2)))
                .isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("F32[2, 3]")
                .hasMessageContaining("F32[3, 2]");
    }

    @Test
    void refusesCopiesThatAreNotContiguous() {
        Tensor columns = tensor(3, 4).slice(1, 0, 2);
        assertThatThrownBy(() -> cpu.upload(tensor(3, 2), columns)).isInstanceOf(IllegalArgumentException.class)
                .hasMessage("expected a copy between contiguous tensors, found a target F32[3, 2] that is not");
        assertThatThrownBy(() -> cpu.download(columns, tensor(3, 2))).isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("found a source F32[3, 2]");
    }

    @Test
    void refusesThreadCountsThatMakeNoSense() {
        assertThatThrownBy(() -> Backends.open(Device.CPU, -1, false))
                .isInstanceOf(BackendException.class)
                .hasMessageContaining("threads");
    }
}
