package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.backend.FakeBackend;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.predict.AttentionSparsity.Layer;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.train.AttentionFixture.Found;
import java.io.IOException;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What layers' attention makes of a budget, a coverage and a calibration. */
class AttentionPlannerTest {

    @TempDir
    Path folder;

    private SparseFixture fixture(boolean preNorm) throws IOException {
        return AttentionFixture.open(folder.resolve("" + preNorm), new FakeBackend(), preNorm);
    }

    private static AttentionSparsity plan(SparseFixture f, AttentionConfig config, @Nullable Found found) {
        return AttentionPlanner.plan(f.model, config, AttentionFixture.POSITIONS, found);
    }

    private static AttentionConfig config(AttentionPolicy policy, double coverage, double budget) {
        return AttentionFixture.config(policy, Pass.BOTH, coverage, budget);
    }

    @Test
    void headsShareALayersBudgetByWhatTheyNeed() throws IOException {
        try (SparseFixture f = fixture(true)) {
            Found found = AttentionFixture.found(f.model);
            // The second head needs twice what the first does.
            Layer layer = plan(f, config(AttentionPolicy.ORACLE, 1, 0.3), found).layers().getFirst();
            assertThat(layer.budgets()).containsExactly(new float[]{0.2f, 0.4f}, within(1e-4f));
            // It cannot get more than all.
            layer = plan(f, config(AttentionPolicy.PREDICTED, 1, 0.9), found).layers().getFirst();
            assertThat(layer.budgets()).containsExactly(new float[]{0.8f, 1}, within(1e-3f));
            assertThat(plan(f, config(AttentionPolicy.ORACLE, 1, 0.3), null).layers().getFirst().budgets())
                    .containsExactly(0.3f, 0.3f);
            assertThat(plan(f, config(AttentionPolicy.RANDOM, 1, 0.3), found).layers().getFirst().budgets())
                    .as("drawn blocks know nothing of heads").containsExactly(0.3f, 0.3f);
            assertThat(plan(f, config(AttentionPolicy.ORACLE, 0.9, 1), found).layers().getFirst().budgets()).isNull();
        }
    }

    @Test
    void layersInWhichListsSaveNothingAreDense() throws IOException {
        try (SparseFixture f = fixture(true); SparseFixture post = fixture(false)) {
            Found found = AttentionFixture.found(f.model);
            // On average heads need three quarters of a coverage.
            assertThat(plan(f, config(AttentionPolicy.ORACLE, 0.9, 1), found).isDense(0)).isFalse();
            Found needy = new Found(2, AttentionFixture.HEADS, AttentionFixture.BLOCK, AttentionFixture.WIDTH, 0.95);
            assertThat(plan(f, config(AttentionPolicy.ORACLE, 0.9, 1), needy).isDense(0)).isTrue();
            assertThat(plan(f, config(AttentionPolicy.ORACLE, 0.9, 0.5), needy).isDense(0)).isFalse();
            AttentionSparsity shortSamples = AttentionPlanner.plan(f.model, config(AttentionPolicy.PREDICTED, 0.9, 1), 64,
                    null);
            assertThat(shortSamples.isDense(0)).as("samples of one block need no calibration").isTrue();
            AttentionSparsity exact = plan(f, config(AttentionPolicy.EXACT, 1, 1), null);
            assertThat(exact.isDense(1)).isTrue();
            AttentionSparsity predicted = plan(post, config(AttentionPolicy.PREDICTED, 1, 0.5), found);
            assertThat(predicted.isDense(0)).as("no norm before the first layer").isTrue();
            assertThat(predicted.isDense(1)).isFalse();
        }
    }

    @Test
    void staticTablesOfShorterSamplesAreTheUpperLeftPart() throws IOException {
        try (SparseFixture f = fixture(true)) {
            Found found = AttentionFixture.found(f.model);
            AttentionSparsity planned = AttentionPlanner.plan(f.model, config(AttentionPolicy.STATIC, 0.9, 1), 190, found);
            float[] table = planned.layers().get(1).table();
            float[] whole = found.table(1);
            assertThat(planned.width()).isEqualTo(3);
            for (int h = 0; h < AttentionFixture.HEADS; h++) {
                for (int i = 0; i < 3; i++) {
                    for (int j = 0; j < 3; j++) {
                        assertThat(table[(h * 3 + i) * 3 + j])
                                .isEqualTo(whole[(h * AttentionFixture.WIDTH + i) * AttentionFixture.WIDTH + j]);
                    }
                }
            }
        }
    }

    /** Without a budget, a row has two first blocks, one before its own and three drawn ones at most; else it grows. */
    @ParameterizedTest
    @EnumSource(value = AttentionPolicy.class, names = {"BIGBIRD", "LONGFORMER"})
    void paperLayoutsHaveTheirSizesOrGrowToABudget(AttentionPolicy policy) throws IOException {
        try (SparseFixture f = fixture(true)) {
            int seqLen = 64 * 40;
            for (double budget : new double[]{1, 0.4}) {
                float[] table = AttentionPlanner.plan(f.model, config(policy, 1, budget), seqLen, null).layers().getFirst()
                        .table();
                for (int i = 12; i < 40; i++) {
                    int row = (40 + i) * 40;
                    int kept = 0;
                    for (int j = 0; j < 40; j++) {
                        kept += table[row + j] > 0 ? 1 : 0;
                        assertThat(table[row + j] == 0 || j <= i).isTrue();
                    }
                    // Longformer's window of 512 tokens is eight blocks and the query's own.
                    assertThat(kept).as("budget %s, row %d", budget, i)
                            .isEqualTo(budget < 1 ? i + 1 : policy == AttentionPolicy.BIGBIRD ? 7 : 9);
                    // What comes first where a budget is short: what is near.
                    assertThat(table[row + i - 1]).isGreaterThanOrEqualTo(table[row + i - 9]);
                }
            }
        }
    }

    @Test
    void anotherCalibrationIsRefused() throws IOException {
        try (SparseFixture f = fixture(true)) {
            AttentionConfig config = config(AttentionPolicy.STATIC, 0.9, 1);
            assertThatThrownBy(() -> plan(f, config, null))
                    .hasMessageContaining("expected a calibration of attention for static attention, found none");
            assertThatThrownBy(() -> plan(f, config, new Found(2, 3, 64, 6, 1)))
                    .hasMessageContaining("expected a calibration of 2 layers of 2 heads, found 2 of 3");
            assertThatThrownBy(() -> plan(f, config, new Found(2, 2, 128, 6, 1)))
                    .hasMessageContaining("in blocks of 64 rows, found one for blocks of 128");
            assertThatThrownBy(() -> plan(f, config, new Found(2, 2, 64, 4, 1))).hasMessageContaining(
                    "over samples of 6 blocks of 64 rows, found one over samples of up to 4: penumbra calibrate");
            assertThatThrownBy(() -> TrainConfig.builder()
                    .sparsity(SparseFixture.config(SelectionPolicy.ORACLE, Pass.BOTH, 0.9, 1, 0))
                    .attention(new AttentionConfig(AttentionPolicy.ORACLE, Pass.BOTH, 0.9, 1, 64, 0.1, 1, false)).build())
                    .hasMessageContaining("expected one dense warm-up of MLPs and attention, which is 0.0, found 0.1");
        }
    }
}
