package dev.penumbra.predict;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.predict.SparsityConfig.Pass;
import java.util.Locale;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** What a choice of blocks is asked for does something, or is refused. */
class ChoiceTest {

    private static SparsityConfig mlp(SelectionPolicy policy, double coverage, double budget, boolean adjust) {
        return new SparsityConfig(policy, Pass.BOTH, coverage, budget, 32, 0, 0, 2, adjust);
    }

    private static AttentionConfig attention(AttentionPolicy policy, double coverage, double budget, boolean adjust) {
        return new AttentionConfig(policy, Pass.BOTH, coverage, budget, 64, 0, 2, adjust);
    }

    @ParameterizedTest
    @EnumSource(value = SelectionPolicy.class, names = {"ALL", "EXACT", "SEED"})
    void blocksOfARuleTakeNoCoverage(SelectionPolicy policy) {
        assertThatThrownBy(() -> mlp(policy, 0.5, 1, false)).isInstanceOf(IllegalArgumentException.class).hasMessage(
                "expected a coverage of 1 for " + policy + " blocks, which are not chosen by one, found 0.5");
        assertThat(mlp(policy, 1, 1, false).coverage()).isEqualTo(1);
    }

    @ParameterizedTest
    @EnumSource(SelectionPolicy.class)
    void aBudgetIsTakenOrRefused(SelectionPolicy policy) {
        if (policy == SelectionPolicy.ALL) {
            assertThatThrownBy(() -> mlp(policy, 1, 0.5, false))
                    .hasMessage("expected a budget of 1 for all blocks, which are not bounded by one, found 0.5");
        } else {
            assertThat(mlp(policy, 1, 0.5, false).budget()).isEqualTo(0.5);
        }
    }

    @ParameterizedTest
    @EnumSource(AttentionPolicy.class)
    void attentionTakesACoverageAndABudgetOrRefusesThem(AttentionPolicy policy) {
        String of = " of 1 for blocks of " + policy.name().toLowerCase(Locale.ROOT) + " attention, which are not ";
        switch (policy) {
            case ALL, EXACT -> {
                assertThatThrownBy(() -> attention(policy, 0.5, 1, false)).hasMessageContaining("a coverage" + of);
                assertThatThrownBy(() -> attention(policy, 1, 0.5, false)).hasMessageContaining("a budget" + of);
            }
            case BIGBIRD, LONGFORMER -> {
                assertThatThrownBy(() -> attention(policy, 0.5, 1, false)).hasMessageContaining("a coverage" + of);
                assertThat(attention(policy, 1, 0.5, false).budget()).isEqualTo(0.5);
            }
            default -> assertThat(attention(policy, 0.5, 0.6, false).budget()).isEqualTo(0.6);
        }
    }

    @ParameterizedTest
    @EnumSource(value = SelectionPolicy.class, names = {"ORACLE", "EXACT"})
    void onlyACoverageBelowOneIsAdjusted(SelectionPolicy policy) {
        assertThatThrownBy(() -> mlp(policy, 1, 0.5, true)).isInstanceOf(IllegalArgumentException.class)
                .hasMessage("expected a coverage below 1 that is adjusted, found 1.0");
        assertThatThrownBy(
                () -> attention(AttentionPolicy.valueOf(policy.name()), 1, policy == SelectionPolicy.EXACT ? 1 : 0.5,
                        true))
                .hasMessage("expected a coverage below 1 that is adjusted, found 1.0");
    }
}
