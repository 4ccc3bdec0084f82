package dev.penumbra.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.DemoModel;
import dev.penumbra.Penumbra;
import dev.penumbra.backend.Backend;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Sample;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ReluMaskTest {

    private static final int TOKENS = 70;

    private static List<byte[]> bits(Backend backend, List<ReluMask> masks) {
        List<byte[]> all = new ArrayList<>();
        try (Arena arena = Arena.ofConfined()) {
            for (ReluMask mask : masks) {
                Tensor host = Tensor.allocate(arena, DType.U8, mask.bits().shape());
                backend.download(mask.bits(), host);
                all.add(host.segment().toArray(java.lang.foreign.ValueLayout.JAVA_BYTE));
            }
        }
        return all;
    }

    @Test
    void bitsAfterTheLastNeuronDoNotCount() {
        try (Arena arena = Arena.ofConfined(); FakeBackend backend = new FakeBackend()) {
            // Two tokens, ten neurons: three of twenty are active.
            MemorySegment memory = MemorySegment.ofArray(new byte[]{0b0000_0011, (byte) 0b1111_1100, 0, 0b0000_0010});
            Tensor bits = backend.allocate(arena, DType.U8, Shape.of(2, 2));
            backend.upload(Tensor.view(arena.allocate(4).copyFrom(memory), DType.U8, Shape.of(2, 2)), bits);
            assertThat(new ReluMask(0, 10, bits).zeroShare(backend)).isEqualTo(1 - 3 / 20.0);
            assertThatThrownBy(() -> new ReluMask(0, 17, bits)).isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("[tokens, 3]");
        }
    }

    @Test
    void aPassThatOnlyReadsKeepsTheMasksOfATrainingPass(@TempDir Path folder) throws IOException {
        try (Penumbra penumbra = Penumbra.load(DemoModel.extract(folder)); Arena arena = Arena.ofShared()) {
            LanguageModel model = penumbra.model();
            LoraAdapter unchanged = penumbra.newAdapter(LoraConfig.ofRank(2), 1);
            Batch batch = Batch.of(new Sample(IntStream.range(10, 10 + TOKENS).toArray(), new boolean[TOKENS]));
            ModelPass training = model.openPass(arena, unchanged, new PassShape(TOKENS, TOKENS, true, true));
            ModelPass reading = model.openPass(arena, null, new PassShape(TOKENS, TOKENS, false, true));
            training.forward(batch, null);
            reading.forward(batch, null);
            assertThat(reading.reluMasks()).hasSize(6)
                    .allSatisfy(mask -> assertThat(mask.bits().shape()).isEqualTo(Shape.of(TOKENS, 128)))
                    .allSatisfy(mask -> assertThat(mask.zeroShare(model.backend())).isBetween(0.5, 0.999));
            assertThat(bits(model.backend(), reading.reluMasks())).usingRecursiveComparison()
                    .isEqualTo(bits(model.backend(), training.reluMasks()));
        }
    }

    @Test
    void aPassThatKeepsNoMasksSaysSo(@TempDir Path folder) throws IOException {
        try (Penumbra penumbra = Penumbra.load(DemoModel.extract(folder)); Arena arena = Arena.ofShared()) {
            ModelPass pass = penumbra.model().openPass(arena, null, new PassShape(8, 8, false));
            assertThatThrownBy(pass::reluMasks).isInstanceOf(IllegalStateException.class)
                    .hasMessageContaining("keepsReluMasks=false");
        }
    }
}
