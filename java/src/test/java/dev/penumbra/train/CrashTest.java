package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import dev.penumbra.ChildJvm;
import dev.penumbra.backend.FakeBackend;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.io.RunLock;
import dev.penumbra.io.SafetensorsFile;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.Random;
import java.util.Set;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** What is on the disk after saving was cut short. */
class CrashTest {

    private static final int KILLS = 50;

    @TempDir
    Path output;

    @Test
    void aKillAtAnyMomentLeavesWholeCheckpointsAndAWholeAdapter() throws Exception {
        long seed = System.nanoTime();
        Random random = new Random(seed);
        int withoutAdapter = 0;
        int saved = 0;
        for (int kill = 0; kill < KILLS; kill++) {
            try (ChildJvm child = ChildJvm.start(CheckpointWriter.class, output.toString(), String.valueOf(saved + 1),
                    "1000000")) {
                saved = Integer.parseInt(child.readLine());
                Thread.sleep(random.nextInt(120));
                child.kill();
                for (String line = child.readLine(); line != null && !line.isEmpty(); line = child.readLine()) {
                    saved = Integer.parseInt(line);
                }
            }
            String when = "seed " + seed + ", kill " + kill + ", after generation " + saved;
            requireCheckpoints(saved, when);
            withoutAdapter += requireAdapter(saved, when) ? 0 : 1;
            RunLock.acquire(output).close();
            requireNothingElse(when);
            requireCheckpoints(saved, when);
            assertThat(requireAdapter(saved, when)).as(when).isTrue();
        }
        System.out.printf("%d kills while %d generations were saved; %d times PEFT found no adapter until the next run%n",
                KILLS, saved, withoutAdapter);
    }

    /** Each checkpoint is of one generation, and that of step s is the last saved there or the one that was being saved. */
    private void requireCheckpoints(int saved, String when) throws IOException {
        Set<Integer> steps = new HashSet<>();
        int highest = 0;
        try (Stream<Path> entries = Files.list(output)) {
            for (Path folder : entries.filter(p -> Files.exists(p.resolve("state.json")))
                    .filter(p -> !p.toString().endsWith(".part")).toList()) {
                Checkpoints.State state = requireWhole(folder, when);
                assertThat(state.step()).as(when).isEqualTo(CheckpointWriter.step((int) state.microBatch()));
                if (!folder.toString().endsWith(".old")) {
                    assertThat(state.microBatch()).as(when).isGreaterThan(saved - CheckpointWriter.CHECKPOINTS)
                            .isLessThanOrEqualTo(saved + 1);
                }
                steps.add(state.step());
                highest = Math.max(highest, state.step());
            }
        }
        assertThat(steps).as(when).hasSize(Math.min(CheckpointWriter.CHECKPOINTS, Math.max(saved, steps.size())));
        assertThat(requireWhole(Checkpoints.latest(output).orElseThrow(), when).step()).as(when).isEqualTo(highest);
    }

    private Checkpoints.State requireWhole(Path folder, String when) throws IOException {
        try (FakeBackend backend = new FakeBackend();
                Arena arena = Arena.ofShared();
                PeftAdapter read = PeftAdapter.read(folder)) {
            LoraAdapter adapter = CheckpointWriter.adapter(backend, arena, read.config());
            Tensor m = backend.allocate(arena, adapter.parameters().dtype(), adapter.parameters().shape());
            Tensor v = backend.allocate(arena, adapter.parameters().dtype(), adapter.parameters().shape());
            Checkpoints.State state = Checkpoints.load(folder, adapter, m, v, "settings");
            int generation = (int) state.microBatch();
            assertThat(read.config()).as(when).isEqualTo(CheckpointWriter.config(generation));
            for (Tensor tensor : new Tensor[]{adapter.parameters(), m, v}) {
                requireFilled(tensor, generation, when);
            }
            return state;
        }
    }

    private static void requireFilled(Tensor tensor, int generation, String when) {
        for (float value : tensor.toFloats()) {
            if (value != generation) {
                throw new AssertionError(when + ": expected " + generation + " everywhere, found " + value);
            }
        }
    }

    /** The folder's own adapter, as this library reads it and as PEFT would; false when PEFT would find none. */
    private boolean requireAdapter(int saved, String when) throws IOException {
        try (PeftAdapter read = PeftAdapter.read(output)) {
            int generation = (int) read.tensors().values().iterator().next().toFloats()[0];
            assertThat(generation).as(when).isBetween(saved, saved + 1);
            assertThat(read.config()).as(when).isEqualTo(CheckpointWriter.config(generation));
            read.tensors().values().forEach(tensor -> requireFilled(tensor, generation, when));
        }
        Path config = output.resolve("adapter_config.json");
        if (!Files.exists(config)) {
            return false;
        }
        JsonNode json = new JsonMapper().readTree(Files.readString(config));
        try (SafetensorsFile weights = SafetensorsFile.open(output.resolve("adapter_model.safetensors"))) {
            Tensor a = weights.tensor(
                    weights.entries().keySet().stream().filter(name -> name.contains("lora_A")).findFirst().orElseThrow());
            LoraConfig expected = CheckpointWriter.config((int) a.toFloats()[0]);
            assertThat(a.shape().dim(0)).as(when).isEqualTo(expected.r());
            assertThat(json.path("r").asInt()).as(when).isEqualTo(expected.r());
            assertThat(json.path("lora_alpha").asDouble()).as(when).isEqualTo(expected.loraAlpha());
        }
        return true;
    }

    private void requireNothingElse(String when) throws IOException {
        try (Stream<Path> tree = Files.walk(output)) {
            assertThat(tree.map(p -> p.getFileName().toString()).filter(name -> name.startsWith("."))).as(when)
                    .isSubsetOf(".lock", ".checkpoint-1.old", ".checkpoint-2.old", ".checkpoint-3.old");
        }
    }

    @Test
    void theCheckpointThatIsBeingReplacedCountsUntilTheNewOneHasItsName() throws IOException {
        CheckpointWriter.save(output, 1);
        Path old = output.resolve(".checkpoint-2.old");
        Files.move(output.resolve("checkpoint-2"), old);
        assertThat(Checkpoints.latest(output)).contains(old);
        assertThat(requireWhole(old, "between the two moves").microBatch()).isEqualTo(1);
        CheckpointWriter.save(output, 4);
        assertThat(Checkpoints.latest(output)).contains(output.resolve("checkpoint-2"));
        assertThat(old).doesNotExist();
    }

    @Test
    void aFileThatMayNotGrowIsNamedAndLeavesWhatWasThere() throws Exception {
        CheckpointWriter.save(output, 1);
        try (ChildJvm child = ChildJvm.startWithFileLimit(100, CheckpointWriter.class, output.toString(), "2", "1")) {
            assertThat(child.readLine())
                    .isEqualTo(output.resolve("checkpoint-3") + ": expected to write it, found: File too large");
            assertThat(child.waitFor()).isEqualTo(1);
        }
        requireCheckpoints(1, "file limit");
        assertThat(requireAdapter(1, "file limit")).isTrue();
        requireNothingElse("file limit");
    }

    @Test
    void aFullDiskIsNamedAndLeavesWhatWasThere() throws Exception {
        Path disk = Files.createDirectory(output.resolve("disk"));
        Process mount = new ProcessBuilder("mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk.toString())
                .redirectErrorStream(true).start();
        assumeTrue(mount.waitFor() == 0, "expected to be allowed to mount a small disk");
        try {
            CheckpointWriter.save(disk, 1);
            assertThatThrownBy(() -> CheckpointWriter.save(disk, 2)).isInstanceOf(IOException.class)
                    .hasMessage(disk.resolve("checkpoint-3") + ": expected to write it, found: No space left on device");
            assertThat(requireWhole(Checkpoints.latest(disk).orElseThrow(), "full disk").microBatch()).isEqualTo(1);
            PeftAdapter.read(disk).close();
        } finally {
            new ProcessBuilder("umount", disk.toString()).start().waitFor();
        }
    }
}
