package dev.penumbra.train;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.NeedsGpu;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** As {@link StagesTest}, on a GPU, with heads of 64 and widths that the fast kernels take. */
@NeedsGpu
class StagesCudaTest {

    private static final int WIDTH = 128;
    private static final int VOCABULARY = 64;

    @TempDir
    Path folder;

    private SparseFixture open(DType dtype, boolean preNorm, int embedding, Set<String> targets, double dropout,
            int positions, int... lengths) throws IOException {
        RandomOpt sizes = new RandomOpt(WIDTH, 2, SparseFixture.BLOCK * SparseFixture.BLOCKS, 3, VOCABULARY, positions,
                embedding, preNorm, false);
        return new SparseFixture(folder, Backends.open(Device.cuda(0), 0, true), sizes, dtype, targets, neuron -> false,
                List.of(), dropout, lengths);
    }

    @ParameterizedTest
    @CsvSource({"BF16, true, 128, q_proj v_proj", "BF16, true, 64, q_proj k_proj v_proj out_proj fc1 fc2",
            "BF16, false, 64, q_proj v_proj", "BF16, false, 128, q_proj k_proj v_proj out_proj fc1 fc2",
            "F32, true, 64, q_proj k_proj v_proj out_proj fc1 fc2"})
    void denseStepsAndLogitsNeedNoMore(DType dtype, boolean preNorm, int embedding, String targets) throws IOException {
        try (SparseFixture f = open(dtype, preNorm, embedding, Set.of(targets.split(" ")), 0.1, SparseFixture.POSITIONS)) {
            StagesTest.requireSame(f, PassOptions.DENSE, false);
            StagesTest.requireSame(f.superviseEvery(3), PassOptions.DENSE.forLoss(), false);
        }
    }

    @ParameterizedTest
    @CsvSource({"BF16, true, BOTH, PREDICTED", "BF16, true, BOTH, ORACLE", "BF16, true, BACKWARD, PREDICTED",
            "BF16, true, BACKWARD, ORACLE", "BF16, false, BOTH, PREDICTED", "F32, true, BOTH, PREDICTED"})
    void stepsByListsNeedNoMore(DType dtype, boolean preNorm, Pass pass, SelectionPolicy policy) throws IOException {
        for (Set<String> targets : List.of(SparseFixture.ALL, Set.of("q_proj", "v_proj"))) {
            try (SparseFixture f = open(dtype, preNorm, WIDTH, targets, 0, SparseFixture.POSITIONS)) {
                PassOptions options = PassOptions.sparse(f.sparsity(SparseFixture.config(policy, pass, 1, 0.2, 0)));
                StagesTest.requireSame(f, options, true);
                StagesTest.requireSame(f.superviseEvery(3), options.forLoss(), true);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"true, BOTH, ORACLE", "true, BACKWARD, ORACLE", "true, BACKWARD, RANDOM", "false, BOTH, BIGBIRD"})
    void attentionByListsNeedsNoMore(boolean preNorm, Pass pass, AttentionPolicy policy) throws IOException {
        try (SparseFixture f = open(DType.BF16, preNorm, WIDTH, SparseFixture.ALL, 0, AttentionFixture.POSITIONS, 330, 130,
                65, 3)) {
            StagesTest.requireSame(f, PassOptions.sparse(
                    f.sparsity(SparseFixture.config(SelectionPolicy.PREDICTED, pass, 1, 0.4, 0)),
                    AttentionFixture.sparsity(f, AttentionFixture.config(policy, pass, 0.9, 0.7, 128))), true);
        }
    }
}
