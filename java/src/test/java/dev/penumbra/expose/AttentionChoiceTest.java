package dev.penumbra.expose;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.sparse.BlockMask;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class AttentionChoiceTest {

    private static final int SIZE = 64;

    private static float[] masses(int blocks, Random random) {
        float[] mass = new float[blocks * blocks];
        for (int i = 0; i < blocks; i++) {
            for (int j = 0; j <= i; j++) {
                // Some are equal, some nothing.
                mass[i * blocks + j] = random.nextInt(4) == 0 ? random.nextInt(3) : random.nextFloat();
            }
        }
        return mass;
    }

    /** What judges predictors on the host chooses what a step does. */
    @ParameterizedTest
    @CsvSource({"1, 0.5, 1", "2, 0.5, 1", "3, 0.3, 1", "9, 0.3, 1", "9, 0.62, 0.9", "16, 0.3, 1", "16, 1, 0.8", "16, 1, 1",
            "23, 0.25, 0.95"})
    void itIsWhatTheOperationChooses(int blocks, float budget, float coverage) {
        long seed = 17;
        float[] mass = masses(blocks, new Random(seed));
        boolean[] kept = AttentionChoice.choose(mass, blocks, coverage, budget);
        int tokens = blocks * SIZE - 7;
        long slots = AttentionBlocks.slots(tokens, 1, SIZE);
        try (Backend backend = Backends.open(Device.CPU, 1, true); Arena arena = Arena.ofShared()) {
            float[] padded = new float[Math.toIntExact(slots) * blocks];
            System.arraycopy(mass, 0, padded, 0, mass.length);
            AttentionBlocks lists = new AttentionBlocks(
                    backend.allocate(arena, DType.I32, Shape.of(1, slots, blocks)),
                    backend.allocate(arena, DType.I32, Shape.of(1, slots)),
                    backend.allocate(arena, DType.I32, Shape.of(1, slots, blocks)),
                    backend.allocate(arena, DType.I32, Shape.of(1, slots)),
                    backend.allocate(arena, DType.I32, Shape.of(2, slots)), SIZE);
            Tensor masses = Tensor.of(arena, padded).reshape(1, slots, blocks);
            Tensor budgets = Tensor.of(arena, budget);
            Tensor borders = Tensor.of(arena, 0, tokens);
            SelectAttention bare = new SelectAttention(masses, null, budgets, coverage, borders, tokens, tokens, lists, null,
                    null);
            long bytes = backend.workspaceBytes(bare);
            Tensor workspace = bytes == 0 ? null : backend.allocate(arena, DType.U8, Shape.of(bytes));
            backend.run(
                    new SelectAttention(masses, null, budgets, coverage, borders, tokens, tokens, lists, null, workspace));
            backend.synchronize();
            BlockMask chosen = BlockMask.ofLists(1, blocks, lists.indices().toInts(), lists.counts().toInts(),
                    Math.toIntExact(slots), 0);
            for (int i = 0; i < blocks; i++) {
                for (int j = 0; j <= i; j++) {
                    assertThat(kept[i * blocks + j]).as("seed %d, %d blocks, budget %.2f, coverage %.2f, block %d, %d", seed,
                            blocks, budget, coverage, i, j).isEqualTo(chosen.keeps(0, i, j));
                }
            }
            assertThat(AttentionChoice.count(kept)).isEqualTo(chosen.count(0));
        }
    }

    @Test
    void whatIsNeededIsTheFewestThatCover() {
        long seed = 4;
        Random random = new Random(seed);
        double[] coverages = {0.5, 0.8, 0.95, 1};
        for (int blocks = 1; blocks < 12; blocks++) {
            float[] mass = masses(blocks, random);
            int[] needed = AttentionChoice.needed(mass, blocks, coverages);
            for (int c = 0; c < coverages.length; c++) {
                assertThat(needed[c]).as("seed %d, %d blocks, coverage %.2f", seed, blocks, coverages[c])
                        .isEqualTo(AttentionChoice.count(AttentionChoice.choose(mass, blocks, coverages[c], 1)));
            }
        }
    }
}
