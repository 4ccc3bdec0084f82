package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.FakeBackend;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** What layers make of a budget, a coverage and a calibration. Layers of the model have five blocks. */
class SparsityPlannerTest {

    private static final int NEURONS = SparseFixture.BLOCK * SparseFixture.BLOCKS;

    @TempDir
    Path folder;

    /** Layers that need a fifth, half and all of their blocks, and weigh neurons by their places. */
    private record Found(List<NeuronOrder> orders) implements MlpExposure {

        @Override
        public int layers() {
            return orders.size();
        }

        @Override
        public int neurons() {
            return NEURONS;
        }

        @Override
        public NeuronOrder order(int layer) {
            return orders.get(layer);
        }

        @Override
        public float[] mass(int layer) {
            float[] mass = new float[NEURONS];
            Arrays.fill(mass, 0, SparseFixture.BLOCK, 2);
            return mass;
        }

        @Override
        public float[] fired(int layer) {
            float[] fired = new float[NEURONS];
            Arrays.fill(fired, NEURONS - SparseFixture.BLOCK, NEURONS, 0.5f);
            return fired;
        }

        @Override
        public Optional<LowRankPredictor> predictor(int layer, int blockSize) {
            return Optional.empty();
        }

        @Override
        public Optional<LowRankPredictor> lowRank(int layer, int blockSize) {
            return Optional.empty();
        }

        @Override
        public double keptAt(int layer, int blockSize, Pass pass, double coverage, int rowsPerList) {
            return new double[]{0.2, 0.5, 1}[layer];
        }

        @Override
        public String identity() {
            return "found";
        }
    }

    private static Found plain() {
        NeuronOrder order = NeuronOrder.identity(NEURONS);
        return new Found(List.of(order, order, order));
    }

    private SparseFixture fixture() throws IOException {
        return new SparseFixture(folder, new FakeBackend(), true);
    }

    private static List<Integer> capacities(MlpSparsity sparsity) {
        return sparsity.layers().stream().map(MlpSparsity.Layer::capacity).toList();
    }

    @Test
    void aBudgetIsTheRoomOfEveryLayer() throws IOException {
        try (SparseFixture f = fixture()) {
            MlpSparsity planned = SparsityPlanner.plan(f.model,
                    SparseFixture.config(SelectionPolicy.ORACLE, Pass.BOTH, 1, 0.41, 0), plain());
            assertThat(capacities(planned)).containsExactly(3, 3, 3);
            assertThat(planned.layers()).allSatisfy(layer -> assertThat(layer.coverage()).isEqualTo(1));
            assertThat(capacities(f.sparsity(SparseFixture.config(SelectionPolicy.ALL, Pass.BOTH, 1, 1, 0))))
                    .containsExactly(5, 5, 5);
        }
    }

    @Test
    void aCoverageGivesEachLayerWhatCalibrationFoundItToNeedAndSomeMore() throws IOException {
        try (SparseFixture f = fixture()) {
            SparsityConfig config = SparseFixture.config(SelectionPolicy.ORACLE, Pass.BOTH, 0.9, 1, 0);
            MlpSparsity planned = SparsityPlanner.plan(f.model, config, plain());
            // 1.25 of a block, 3.125 blocks, and a layer that gains nothing.
            assertThat(capacities(planned)).containsExactly(2, 4, 5);
            assertThat(List.of(planned.isDense(0), planned.isDense(1), planned.isDense(2))).containsExactly(false, false,
                    true);
            assertThat(capacities(SparsityPlanner.plan(f.model, config, null))).containsExactly(5, 5, 5);
            assertThat(capacities(SparsityPlanner.plan(f.model,
                    SparseFixture.config(SelectionPolicy.ORACLE, Pass.BOTH, 0.9, 0.6, 0), plain())))
                    .containsExactly(2, 3, 3);
        }
    }

    @Test
    void staticListsWeighSampleTextByThePassTheyAreFor() throws IOException {
        try (SparseFixture f = fixture()) {
            MlpSparsity both = SparsityPlanner.plan(f.model,
                    SparseFixture.config(SelectionPolicy.STATIC, Pass.BOTH, 1, 0.4, 0), plain());
            assertThat(both.layers().getFirst().scores()).containsExactly(64, 0, 0, 0, 0);
            MlpSparsity backward = SparsityPlanner.plan(f.model,
                    SparseFixture.config(SelectionPolicy.STATIC, Pass.BACKWARD, 1, 0.4, 0), plain());
            float[] norms = f.model.neuronNorms(0).product();
            float expected = 0;
            for (int j = NEURONS - SparseFixture.BLOCK; j < NEURONS; j++) {
                expected += norms[j] * 0.5f;
            }
            assertThat(backward.layers().getFirst().scores()).containsExactly(0, 0, 0, 0, expected);
        }
    }

    @Test
    void anotherModelsCalibrationIsRefused() throws IOException {
        try (SparseFixture f = fixture()) {
            SparsityConfig config = SparseFixture.config(SelectionPolicy.ORACLE, Pass.BOTH, 0.9, 1, 0);
            int[] turned = NeuronOrder.identity(NEURONS).toArray();
            turned[0] = 1;
            turned[1] = 0;
            NeuronOrder other = new NeuronOrder(turned);
            assertThatThrownBy(() -> SparsityPlanner.plan(f.model, config, new Found(List.of(other, other, other))))
                    .hasMessageContaining("layer 0: expected a model loaded in the calibration's order of neurons");
            assertThatThrownBy(() -> SparsityPlanner.plan(f.model, config, new Found(List.of(other))))
                    .hasMessageContaining("expected a calibration of 3 layers of 160 neurons, found 1 of 160");
            assertThatThrownBy(() -> SparsityPlanner.plan(f.model,
                    SparseFixture.config(SelectionPolicy.PREDICTED, Pass.BOTH, 0.9, 1, 0), plain()))
                    .hasMessageContaining("expected a calibration for predicted blocks of 32 neurons, found one for others");
        }
    }
}
