package dev.penumbra.train;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** As {@link LossOnlyPassTest}, on a GPU, with heads of 64 and widths that the fast kernels take. */
@NeedsGpu
class LossOnlyPassCudaTest {

    @TempDir
    Path folder;

    @ParameterizedTest
    @CsvSource({"F32, true, 1e-5", "F32, false, 1e-5", "BF16, true, 0.03", "BF16, false, 0.03"})
    void lossAndGradientsAreThoseOfAllRows(DType dtype, boolean preNorm, double tolerance) throws IOException {
        RandomOpt sizes = new RandomOpt(128, 2, SparseFixture.BLOCK * SparseFixture.BLOCKS, 3, 64, SparseFixture.POSITIONS,
                64,
                preNorm, false);
        for (Set<String> targets : List.of(SparseFixture.ALL, Set.of("q_proj", "v_proj"))) {
            try (SparseFixture f = new SparseFixture(folder, Backends.open(Device.cuda(0), 0, true), sizes, dtype, targets,
                    neuron -> false, List.of(), 0)) {
                f.superviseEvery(3);
                LossOnlyPassTest.requireSame(f, PassOptions.DENSE, Mode.DENSE, tolerance);
                for (Pass pass : Pass.values()) {
                    LossOnlyPassTest.requireSame(f, PassOptions.sparse(f.fixed(pass, 0, 2, 3)), Mode.SPARSE, tolerance);
                }
            }
        }
    }
}
