package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.model.ModelPass.DropoutSeed;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.ModelException;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.PassOptions;
import dev.penumbra.tensor.DType;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.train.SparseFixture.Result;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A pass whose activations wait in host memory computes the same in less memory of the device. */
class OffloadTest {

    static final int LAYERS = 6;
    /** Between a layer and the one that has its memory there is another. */
    static final int MOST = 2;

    @TempDir
    Path folder;

    private SparseFixture open(DType dtype, boolean preNorm, String targets) throws IOException {
        RandomOpt sizes = new RandomOpt(24, 2, SparseFixture.BLOCK * SparseFixture.BLOCKS, LAYERS, 50,
                SparseFixture.POSITIONS, 24, preNorm, false);
        return new SparseFixture(folder, Backends.open(Device.CPU, 2, true), sizes, dtype, Set.of(targets.split(" ")),
                neuron -> false, List.of(), 0.1);
    }

    @ParameterizedTest
    @CsvSource({"F32, true, q_proj v_proj", "F32, true, fc2", "F32, false, q_proj v_proj", "BF16, true, q_proj v_proj",
            "BF16, false, q_proj k_proj v_proj out_proj fc1 fc2"})
    void stepsAndLossesAreTheSame(DType dtype, boolean preNorm, String targets) throws IOException {
        try (SparseFixture f = open(dtype, preNorm, targets)) {
            requireSame(f, PassOptions.DENSE);
            requireSame(f.superviseEvery(3), PassOptions.DENSE.forLoss());
        }
    }

    /** To the bit, for each number of layers, of steps and losses in any order. */
    static void requireSame(SparseFixture f, PassOptions options) {
        List<Object> expected = results(f, f.model.openPass(f.arena, f.adapter, f.shape(), options.offloading(0)));
        for (int layers = 1; layers <= MOST; layers++) {
            List<Object> found = results(f, f.model.openPass(f.arena, f.adapter, f.shape(), options.offloading(layers)));
            assertThat(found).as("%d layers", layers).usingRecursiveComparison().isEqualTo(expected);
        }
    }

    private static List<Object> results(SparseFixture f, ModelPass pass) {
        List<Object> results = new ArrayList<>();
        DropoutSeed seed = new DropoutSeed(3, 5);
        Result first = f.run(pass, Mode.DENSE, seed);
        assertThat(first.loss()).isFinite().isNotZero();
        results.add(first);
        results.add(f.loss(pass, Mode.DENSE, null));
        results.add(f.run(pass, Mode.DENSE, null));
        results.add(f.run(pass, Mode.DENSE, seed));
        assertThat(results.get(3)).usingRecursiveComparison().isEqualTo(first);
        return results;
    }

    @Test
    void thePlanHasWhatWaitsOnTheHost() throws IOException {
        try (SparseFixture f = open(DType.BF16, true, "q_proj v_proj")) {
            MemoryPlan none = plan(f, PassOptions.DENSE.offloading(0));
            // q, k, v and what heads give in bf16; on a CPU the input and what lies between the sublayers in f32.
            long bytes = (4 * 2 + 2 * 4) * 24L * f.shape().capacity();
            for (int layers = 1; layers <= MOST; layers++) {
                MemoryPlan some = plan(f, PassOptions.DENSE.offloading(layers));
                assertThat(none.deviceBytes() - some.deviceBytes()).isEqualTo(layers * bytes);
                assertThat(some.bytes(MemoryPlan.Kind.HOST) - none.bytes(MemoryPlan.Kind.HOST)).isEqualTo(layers * bytes);
            }
            assertThat(plan(f, PassOptions.DENSE).entries()).isEqualTo(none.entries());
        }
    }

    private static MemoryPlan plan(SparseFixture f, PassOptions options) {
        MemoryPlan plan = new MemoryPlan();
        f.model.planPass(plan, f.adapter, f.shape(), options);
        return plan;
    }

    @Test
    void saysHowManyLayersThereAre() throws IOException {
        try (SparseFixture f = open(DType.F32, true, "q_proj")) {
            assertThatThrownBy(() -> plan(f, PassOptions.DENSE.offloading(3))).isInstanceOf(ModelException.class)
                    .hasMessage("expected at most 2 layers to offload, of 6 that have a backward pass, found 3");
            assertThatThrownBy(() -> PassOptions.DENSE.offloading(-2)).isInstanceOf(IllegalArgumentException.class)
                    .hasMessageContaining("expected 0 or more offloaded layers").hasMessageContaining("found -2");
        }
    }
}
