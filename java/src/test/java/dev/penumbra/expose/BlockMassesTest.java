package dev.penumbra.expose;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import dev.penumbra.predict.Matrix;
import dev.penumbra.sparse.NeuronOrder;
import java.util.List;
import org.junit.jupiter.api.Test;

class BlockMassesTest {

    /** Two lists of four blocks. */
    private static final BlockMasses MASSES = new BlockMasses(new Matrix(2, 4, new float[]{4, 3, 2, 1, 0, 0, 5, 5}));

    @Test
    void theOracleTakesEachListsHeaviest() {
        assertThat(MASSES.oracle(1)).isCloseTo(9.0 / 20, within(1e-9));
        assertThat(MASSES.oracle(2)).isCloseTo(17.0 / 20, within(1e-9));
        assertThat(MASSES.oracle(4)).isEqualTo(1);
    }

    @Test
    void aChoiceCoversWhatItsBlocksWeigh() {
        assertThat(MASSES.covered(new float[]{0, 0, 1, 2}, 2)).isCloseTo(13.0 / 20, within(1e-9));
        assertThat(MASSES.covered(MASSES, 2)).isEqualTo(MASSES.oracle(2));
    }

    @Test
    void curvesGiveTheMeanAndWhatNearlyAllReach() {
        BlockMasses.Curve curve = MASSES.curve(0);
        assertThat(curve.mean()).containsExactly(0.45f, 0.85f, 0.95f, 1);
        assertThat(curve.low()).containsExactly(0.4f, 0.7f, 0.9f, 1);
        assertThat(BlockMasses.needed(curve.low(), 0.9)).isEqualTo(3);
        assertThat(BlockMasses.needed(curve.mean(), 0.85)).isEqualTo(2);
        assertThat(BlockMasses.needed(curve.mean(), 1)).isEqualTo(4);
    }

    @Test
    void listsOfABatchAreAddedUp() {
        assertThat(MASSES.merged(new int[]{3, 3}).values().values()).containsExactly(4, 3, 7, 6);
        assertThat(MASSES.merged(new int[]{0, 1}).values().values()).containsExactly(MASSES.values().values());
    }

    @Test
    void neuronsAreAddedUpByTheirPlaces() {
        BlockMasses masses = BlockMasses.of(List.of(new float[]{1, 2, 4, 8}), new NeuronOrder(3, 0, 2, 1), 2);
        assertThat(masses.values().values()).containsExactly(9, 6);
    }

    @Test
    void nothingAtAllIsCovered() {
        BlockMasses none = new BlockMasses(Matrix.zeros(2, 3));
        assertThat(none.oracle(1)).isEqualTo(1);
        assertThat(none.curve(0).low()).containsExactly(1, 1, 1);
    }
}
