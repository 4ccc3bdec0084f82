package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.ChildJvm;
import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.model.ModelException;
import dev.penumbra.model.Opt;
import dev.penumbra.model.PassShape;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Collections;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

class MemoryPlanTest {

    private static final int SEQ_LEN = 24;

    @TempDir
    Path dir;

    private static Dataset data(int samples, int length) {
        boolean[] supervised = new boolean[length];
        Arrays.fill(supervised, 1, length, true);
        return Dataset.of(Collections.nCopies(samples,
                new Sample(new Random(1).ints(length, 0, 20).toArray(), supervised)));
    }

    private static TrainConfig.Builder config() {
        return TrainConfig.builder().steps(2).batchSize(2).seqLen(SEQ_LEN).lr(1e-3);
    }

    /** An opened model on a fake backend, and its trainer with evaluation and an output. */
    private Trainer trainer(FakeBackend backend, Arena arena, ModelFolder folder) throws IOException {
        Opt model = Opt.open(backend, arena, folder, DType.F32);
        LoraAdapter adapter = LoraAdapter.create(backend, arena, LoraConfig.ofRank(2).withTargets("v_proj", "fc1"),
                model.adaptableLayers(), model.peftPrefix(), 1);
        return new Trainer(model, adapter, config().output(dir.resolve("out")).build(), data(6, SEQ_LEN), data(3, SEQ_LEN));
    }

    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5, 6})
    void thePlanOfAnOpenedModelIsWhatARunAllocates(long seed) throws IOException {
        Random random = new Random(seed);
        RandomOpt.draw(random).write(dir.resolve("model"), random);
        try (FakeBackend backend = new FakeBackend();
                Arena arena = Arena.ofShared();
                ModelFolder folder = ModelFolder.open(dir.resolve("model"))) {
            Trainer trainer = trainer(backend, arena, folder);
            MemoryPlan plan = trainer.plan();
            assertThat(backend.allocatedBytes()).as("before the run: the adapter alone")
                    .isEqualTo(plan.bytes(MemoryPlan.Kind.ADAPTER));
            AtomicLong allocated = new AtomicLong();
            trainer.listener(step -> allocated.set(backend.allocatedBytes())).run();
            assertThat(plan.deviceBytes()).as(plan.details()).isEqualTo(allocated.get());
        }
    }

    /** Neither steps whose attention has lists, nor steps that measure them, nor evaluations allocate more. */
    @ParameterizedTest
    @EnumSource(Pass.class)
    void thePlanOfASparseRunIsWhatItAllocates(Pass pass) throws IOException {
        Random random = new Random(8);
        new RandomOpt(16, 2, 32, 2, 30, 132, 16, true, false).write(dir.resolve("model"), random);
        try (FakeBackend backend = new FakeBackend();
                Arena arena = Arena.ofShared();
                ModelFolder folder = ModelFolder.open(dir.resolve("model"))) {
            Opt model = Opt.open(backend, arena, folder, DType.F32);
            LoraAdapter adapter = LoraAdapter.create(backend, arena, LoraConfig.ofRank(2), model.adaptableLayers(),
                    model.peftPrefix(), 1);
            TrainConfig sparse = config().seqLen(132)
                    .sparsity(new SparsityConfig(SelectionPolicy.ORACLE, pass, 1, 0.5, 32, 0, 0, 2, false))
                    .attention(new AttentionConfig(AttentionPolicy.RANDOM, pass, 1, 0.6, 64, 0, 2, false)).build();
            Trainer trainer = new Trainer(model, adapter, sparse, data(4, 132), data(2, 132));
            MemoryPlan plan = trainer.plan();
            assertThat(plan.entries()).anyMatch(e -> e.name().contains("attention blocks"))
                    .anyMatch(e -> e.name().contains("true attention mass"));
            AtomicLong allocated = new AtomicLong();
            trainer.listener(step -> allocated.set(backend.allocatedBytes())).run();
            assertThat(plan.deviceBytes()).as(plan.details()).isEqualTo(allocated.get());
        }
    }

    /** Whichever needs more of an operation: a step with dropout or one without. */
    @ParameterizedTest
    @ValueSource(booleans = {true, false})
    void aPlanHasRoomForStepsWithDropoutAndWithout(boolean dropoutNeedsMore) throws IOException {
        long much = 1 << 20;
        Random random = new Random(3);
        RandomOpt.draw(random).write(dir.resolve("model"), random);
        try (FakeBackend backend = new FakeBackend() {
            @Override
            public long workspaceBytes(Operation operation) {
                return operation instanceof LoraGradients op && op.dropout() != null == dropoutNeedsMore
                        ? much
                        : super.workspaceBytes(operation);
            }
        };
                Arena arena = Arena.ofShared();
                ModelFolder folder = ModelFolder.open(dir.resolve("model"))) {
            Opt model = Opt.open(backend, arena, folder, DType.F32);
            LoraAdapter adapter = LoraAdapter.create(backend, arena,
                    new LoraConfig(2, 4, 0.1, Set.copyOf(LoraConfig.OPT_TARGETS), false),
                    model.adaptableLayers(), model.peftPrefix(), 1);
            MemoryPlan plan = new MemoryPlan();
            model.planPass(plan, adapter, new PassShape(8, 4, true));
            assertThat(plan.bytes(MemoryPlan.Kind.WORKSPACE)).as(plan.details()).isGreaterThanOrEqualTo(much);
        }
    }

    @Test
    void aRunThatDoesNotFitIsRefusedBeforeAWeightIsLoaded() throws IOException {
        Random random = new Random(3);
        RandomOpt.draw(random).write(dir.resolve("model"), random);
        try (FakeBackend backend = new FakeBackend();
                Arena arena = Arena.ofShared();
                ModelFolder folder = ModelFolder.open(dir.resolve("model"))) {
            Trainer trainer = trainer(backend, arena, folder);
            MemoryPlan plan = trainer.plan();
            backend.pretendFree(plan.missingBytes() - 1);
            assertThatThrownBy(trainer::run).isInstanceOf(ModelException.class).hasMessageContaining("not enough memory")
                    .hasMessageContaining("frozen weights");
            assertThat(plan.table()).contains("bytes a parameter");
            assertThat(backend.allocatedBytes()).isEqualTo(plan.bytes(MemoryPlan.Kind.ADAPTER));
            backend.pretendFree(plan.missingBytes());
            assertThat(trainer.run()).isNotNull();
        }
    }

    /** Loosely: threads, the JVM's own and oneDNN's code are in the process's growth and not in the plan. */
    @Test
    void aProcessGrowsByAboutThePlan() throws IOException {
        new RandomOpt(512, 8, 2048, 6, 8000, 256, 512, true, false).write(dir.resolve("model"), new Random(4));
        long planned;
        long grown;
        try (ChildJvm child = ChildJvm.startWithFixedHeap(256, Growth.class, dir.resolve("model").toString())) {
            planned = Long.parseLong(child.readLine());
            grown = Long.parseLong(child.readLine());
        }
        System.out.printf("planned %.1f MiB, grown by %.1f MiB%n", planned / 0x1p20, grown / 0x1p20);
        assertThat(grown).isBetween((long) (0.9 * planned), (long) (1.1 * planned) + (64 << 20));
    }

    /** Prints the bytes planned for a run on the model folder given, and those by which the process grew until its last step. */
    static final class Growth {
        public static void main(String[] arguments) throws IOException {
            long before = anonymousBytes();
            try (Penumbra penumbra = Penumbra.open(Path.of(arguments[0]), Device.CPU, 1, DType.BF16)) {
                LoraAdapter adapter = penumbra.newAdapter(LoraConfig.ofRank(8), 1);
                TrainConfig config = config().batchSize(2).seqLen(256).build();
                Trainer trainer = new Trainer(penumbra.model(), adapter, config, data(8, 256), null);
                long planned = trainer.plan().totalBytes();
                AtomicLong after = new AtomicLong();
                trainer.listener(step -> after.set(anonymousBytes())).run();
                System.out.println(planned);
                System.out.println(after.get() - before);
            }
        }
    }

    /** What the process holds beside mapped files. */
    private static long anonymousBytes() {
        try {
            return 1024 * Files.readAllLines(Path.of("/proc/self/status")).stream().filter(l -> l.startsWith("RssAnon:"))
                    .mapToLong(l -> Long.parseLong(l.replaceAll("\\D", ""))).sum();
        } catch (IOException unreadable) {
            throw new UncheckedIOException(unreadable);
        }
    }
}
