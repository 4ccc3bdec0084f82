package dev.penumbra.model;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.FakeBackend;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.EnumSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class BuffersTest {

    /** An operation's workspace is as large as is pretended. */
    private static final class Asking extends FakeBackend {
        private long workspaceBytes;

        @Override
        public long workspaceBytes(Operation operation) {
            return workspaceBytes;
        }
    }

    /** What lives in some stages, and where it lies. */
    private record Placed(Set<Stage> stages, Tensor tensor) {
        long from() {
            return tensor.segment().address();
        }

        long to() {
            return from() + tensor.segment().byteSize();
        }
    }

    private static Set<Stage> some(Random random) {
        Set<Stage> stages = EnumSet.noneOf(Stage.class);
        while (stages.isEmpty()) {
            for (Stage stage : Stage.values()) {
                if (random.nextInt(3) == 0) {
                    stages.add(stage);
                }
            }
        }
        return stages;
    }

    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5, 6, 7, 8})
    void whatSharesAStageDoesNotShareMemory(long seed) {
        Random random = new Random(seed);
        List<Set<Stage>> stages = new ArrayList<>();
        List<Integer> sizes = new ArrayList<>();
        for (int i = 0; i < 12; i++) {
            stages.add(some(random));
            sizes.add(1 + random.nextInt(2000));
        }
        Map<Stage, Long> workspace = new EnumMap<>(Stage.class);
        try (Asking backend = new Asking(); Arena arena = Arena.ofConfined()) {
            Buffers planning = Buffers.planning(backend, new MemoryPlan());
            for (int i = 0; i < stages.size(); i++) {
                planning.passing(stages.get(i), DType.F32, sizes.get(i));
            }
            Operation some = new Fill(0, Tensor.planned(DType.F32, Shape.of(1)));
            for (Stage stage : Stage.values()) {
                workspace.put(stage, (long) random.nextInt(4000));
                planning.begin(stage);
                backend.workspaceBytes = workspace.get(stage);
                planning.run(some);
            }
            Buffers buffers = Buffers.allocating(backend, arena, planning.sharedBytes());
            List<Placed> placed = new ArrayList<>();
            for (int i = 0; i < stages.size(); i++) {
                placed.add(new Placed(stages.get(i), buffers.passing(stages.get(i), DType.F32, sizes.get(i))));
            }
            for (Stage stage : Stage.values()) {
                buffers.begin(stage);
                List<Placed> there = new ArrayList<>(placed.stream().filter(p -> p.stages.contains(stage)).toList());
                Tensor space = buffers.workspace();
                if (space == null) {
                    assertThat(workspace.get(stage)).isZero();
                } else {
                    assertThat(space.segment().byteSize()).as("%s, seed %d", stage, seed)
                            .isGreaterThanOrEqualTo(workspace.get(stage));
                    there.add(new Placed(EnumSet.of(stage), space));
                }
                for (Placed a : there) {
                    for (Placed b : there) {
                        assertThat(a == b || a.to() <= b.from() || b.to() <= a.from())
                                .as("%s, seed %d: %s and %s", stage, seed, a.tensor, b.tensor).isTrue();
                    }
                }
            }
        }
    }

    @Test
    void stagesTakeNoMoreThanTheLargestOfThem() {
        try (Asking backend = new Asking()) {
            Buffers planning = Buffers.planning(backend, new MemoryPlan());
            planning.passing(EnumSet.of(Stage.ATTENTION), DType.F32, 512);
            planning.passing(EnumSet.of(Stage.MLP), DType.F32, 1024);
            planning.begin(Stage.ATTENTION);
            backend.workspaceBytes = 2049;
            planning.run(new Fill(0, Tensor.planned(DType.F32, Shape.of(1))));
            assertThat(planning.sharedBytes()).isEqualTo(2048 + 2049);
        }
    }
}
