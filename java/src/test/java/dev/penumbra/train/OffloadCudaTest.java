package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.Graph;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.PassOptions;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.model.RandomOpt;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** As {@link OffloadTest}, on a GPU, whose copies run beside its operations, and in a graph. */
@NeedsGpu
class OffloadCudaTest {

    @TempDir
    Path folder;

    private SparseFixture open(boolean preNorm, String... targets) throws IOException {
        RandomOpt sizes = new RandomOpt(128, 2, SparseFixture.BLOCK * SparseFixture.BLOCKS, OffloadTest.LAYERS, 64,
                SparseFixture.POSITIONS, 128, preNorm, false);
        return new SparseFixture(folder, Backends.open(Device.cuda(0), 0, true), sizes, DType.BF16, Set.of(targets),
                neuron -> false, List.of(), 0.1);
    }

    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void stepsAndLossesAreTheSame(boolean preNorm) throws IOException {
        try (SparseFixture f = open(preNorm, "q_proj", "v_proj", "fc1")) {
            OffloadTest.requireSame(f, PassOptions.DENSE);
            OffloadTest.requireSame(f.superviseEvery(3), PassOptions.DENSE.forLoss());
        }
    }

    @Test
    void graphsComputeTheSame() throws IOException {
        try (SparseFixture f = open(true, "q_proj", "v_proj")) {
            SparseFixture.Result expected = f.run(open(f, 0), Mode.DENSE, null);
            ModelPass pass = open(f, OffloadTest.MOST);
            Tensor loss = f.backend.allocate(f.arena, DType.F32, Shape.of(1));
            Tensor scale = f.backend.allocate(f.arena, DType.F32, Shape.of(1));
            Tensor grad = f.backend.allocate(f.arena, DType.F32, f.adapter.parameters().shape());
            Scalars.write(f.backend, scale, 1);
            pass.load(f.batch(), null, Mode.DENSE);
            Graph graph = f.backend.capture(f.arena, () -> {
                f.backend.run(new Fill(0, loss));
                f.backend.run(new Fill(0, grad));
                pass.forward();
                pass.addLossAndGradients(loss, scale, grad);
            });
            for (int i = 0; i < 20; i++) {
                graph.launch();
                assertThat((double) Scalars.read(f.backend, loss)).isEqualTo(expected.loss());
                assertThat(f.host(grad)).isEqualTo(expected.gradient());
            }
        }
    }

    private static ModelPass open(SparseFixture f, int layers) {
        return f.model.openPass(f.arena, f.adapter, f.shape(), PassOptions.DENSE.offloading(layers));
    }
}
