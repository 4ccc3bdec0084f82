package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.model.AttentionObserver;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import dev.penumbra.train.SparseFixture.Result;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** A pass of which only the loss is read gives the loss and the gradients of one that computes every row of its last layer. */
class LossOnlyPassTest {

    @TempDir
    Path folder;

    private SparseFixture open(RandomOpt sizes, DType dtype, String targets) throws IOException {
        return new SparseFixture(folder, Backends.open(Device.CPU, 2, true), sizes, dtype, Set.of(targets.split(" ")),
                neuron -> false, List.of(), 0);
    }

    /** Norms before or after, a final one or none, projections or none, one layer or three. */
    @ParameterizedTest
    @CsvSource({"F32, true, false, 24, 3, q_proj k_proj v_proj out_proj fc1 fc2", "F32, true, true, 24, 3, q_proj v_proj",
            "F32, true, false, 20, 1, out_proj", "F32, true, false, 24, 1, q_proj v_proj", "F32, true, false, 24, 2, fc2",
            "F32, false, true, 24, 3, q_proj k_proj v_proj out_proj fc1 fc2", "F32, false, true, 20, 1, v_proj fc1",
            "BF16, true, false, 24, 3, q_proj v_proj", "BF16, false, true, 24, 3, q_proj out_proj fc1"})
    void lossAndGradientsAreThoseOfAllRows(DType dtype, boolean preNorm, boolean removeFinalNorm, int embedding, int layers,
            String targets) throws IOException {
        RandomOpt sizes = new RandomOpt(24, 2, SparseFixture.BLOCK * SparseFixture.BLOCKS, layers, 50,
                SparseFixture.POSITIONS, embedding, preNorm, removeFinalNorm);
        try (SparseFixture f = open(sizes, dtype, targets)) {
            for (int nth : new int[]{2, 3, 90}) {
                assertThat(f.superviseEvery(nth).batch().rows()).isNotEmpty();
                requireSame(f, PassOptions.DENSE, Mode.DENSE, dtype == DType.F32 ? 1e-5 : 0.03);
            }
        }
    }

    /** Lists that do not depend on which rows a layer computes. */
    @ParameterizedTest
    @CsvSource({"true, BOTH", "true, BACKWARD", "false, BOTH", "false, BACKWARD"})
    void byListsToo(boolean preNorm, Pass pass) throws IOException {
        try (SparseFixture f = open(SparseFixture.sizes(preNorm, 3), DType.F32, "q_proj v_proj out_proj fc1 fc2")) {
            PassOptions options = PassOptions.sparse(f.fixed(pass, 0, 2, 3));
            requireSame(f.superviseEvery(3), options, Mode.SPARSE, 1e-5);
            requireSame(f, options, Mode.DENSE, 1e-5);
        }
    }

    /** Six products follow the last layer's attention, forward and backward, and read a row for each target and one more. */
    @Test
    void theLastLayersProductsAreOfFewerRows() throws IOException {
        FakeBackend backend = new FakeBackend();
        try (SparseFixture f = new SparseFixture(folder, backend, SparseFixture.sizes(true, 3), DType.F32,
                Set.of("q_proj", "v_proj"), neuron -> false, List.of(), 0)) {
            f.superviseEvery(3);
            int some = PassShape.roundUp(f.batch().rows().length + 1);
            int all = PassShape.roundUp(f.batch().ids().length);
            assertThat(some).isLessThan(all / 2);
            ModelPass pass = pass(f, PassOptions.DENSE.forLoss());
            backend.forgetOperations();
            f.run(pass, Mode.DENSE, null);
            List<Long> rows = backend.operations().stream().filter(Gemm.class::isInstance)
                    .map(op -> ((Gemm) op).a().shape().dim(0)).toList();
            List<Long> expected = new ArrayList<>(Collections.nCopies(2 * 4 + 1, (long) all));
            expected.addAll(Collections.nCopies(6, (long) some));
            // Of the first layer's gradients, none flows on from queries, keys and values.
            expected.addAll(Collections.nCopies(1 + 4 + 3, (long) all));
            assertThat(rows).isEqualTo(expected);
        }
    }

    /** Where few rows are left out, all are computed, to the same bits. */
    @Test
    void whereNearlyAllRowsCountNoneIsLeftOut() throws IOException {
        try (SparseFixture f = open(SparseFixture.sizes(true, 3), DType.F32, "q_proj v_proj fc2")) {
            Result all = f.run(pass(f, PassOptions.DENSE), Mode.DENSE, null);
            Result loss = f.run(pass(f, PassOptions.DENSE.forLoss()), Mode.DENSE, null);
            assertThat(loss.loss()).isEqualTo(all.loss());
            assertThat(loss.gradient()).isEqualTo(all.gradient());
        }
    }

    static void requireSame(SparseFixture f, PassOptions options, Mode mode, double tolerance) {
        Result all = f.run(pass(f, options), mode, null);
        ModelPass pass = pass(f, options.forLoss());
        Result some = f.run(pass, mode, null);
        assertThat(some.loss()).isCloseTo(all.loss(), within(tolerance * Math.abs(all.loss())));
        assertThat(f.loss(pass, mode, null)).isCloseTo(all.loss(), within(tolerance * Math.abs(all.loss())));
        double difference = 0;
        double size = 0;
        for (int i = 0; i < all.gradient().length; i++) {
            difference += Math.pow(some.gradient()[i] - all.gradient()[i], 2);
            size += Math.pow(all.gradient()[i], 2);
        }
        assertThat(Math.sqrt(difference)).isLessThanOrEqualTo(tolerance * Math.sqrt(size));
    }

    private static ModelPass pass(SparseFixture f, PassOptions options) {
        return f.model.openPass(f.arena, f.adapter, f.shape(), options);
    }

    @Test
    void whatItLeavesOutCannotBeRead() throws IOException {
        try (SparseFixture f = open(SparseFixture.sizes(true, 2), DType.F32, "q_proj")) {
            PassShape keeping = new PassShape(f.shape().tokens(), SparseFixture.POSITIONS, true, true);
            ModelPass pass = f.model.openPass(f.arena, f.adapter, keeping, PassOptions.DENSE.forLoss());
            pass.forward(f.batch(), null);
            Tensor logits = f.backend.allocate(f.arena, DType.F32, Shape.of(1, f.model.vocabSize()));
            assertThatThrownBy(() -> pass.logits(logits)).isInstanceOf(IllegalStateException.class)
                    .hasMessage("expected a pass of which all is read, found one opened for its loss only");
            assertThatThrownBy(pass::reluMasks).isInstanceOf(IllegalStateException.class)
                    .hasMessage("expected a pass of which all is read, found one opened for its loss only");
            assertThatThrownBy(() -> PassOptions.observed(null, new AttentionObserver() {
                @Override
                public int poolRows() {
                    return 0;
                }

                @Override
                public void afterAttention(int layer, Seen attention) {
                }
            }).forLoss()).isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("expected no observers in a pass of which only the loss is read");
        }
    }
}
