package dev.penumbra.train;

import dev.penumbra.backend.FakeBackend;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.lora.AdaptableLayer;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Set;

/**
 * Saves checkpoints and adapters, one generation after another, each in place of an older one. Everything in a generation is
 * filled with its number, so that a mixture of two is seen.
 */
final class CheckpointWriter {

    static final int CHECKPOINTS = 3;

    private CheckpointWriter() {
    }

    /** Arguments: the folder, the first generation, how many; prints each when it is saved, or the failure. */
    public static void main(String[] arguments) {
        int first = Integer.parseInt(arguments[1]);
        try {
            for (int g = first; g < first + Integer.parseInt(arguments[2]); g++) {
                save(Path.of(arguments[0]), g);
                System.out.println(g);
            }
        } catch (IOException failure) {
            System.out.println(failure.getMessage());
            System.exit(1);
        }
    }

    /** Two generations have one configuration, then it changes. */
    static LoraConfig config(int generation) {
        return new LoraConfig(generation / 2 % 2 == 0 ? 4 : 8, 1 + generation / 2, 0, Set.of("q_proj"), false);
    }

    static int step(int generation) {
        return 1 + generation % CHECKPOINTS;
    }

    static LoraAdapter adapter(FakeBackend backend, Arena arena, LoraConfig config) {
        return LoraAdapter.create(backend, arena, config,
                List.of(new AdaptableLayer(0, "q_proj", "layers.0.self_attn.q_proj", 4096, 4096)),
                "base_model.model.model.decoder.", 1);
    }

    static Tensor filled(FakeBackend backend, Arena arena, LoraAdapter adapter, int generation) {
        Tensor tensor = backend.allocate(arena, DType.F32, adapter.parameters().shape());
        float[] values = new float[Math.toIntExact(tensor.shape().size())];
        Arrays.fill(values, generation);
        tensor.copyFrom(values);
        return tensor;
    }

    static void save(Path output, int generation) throws IOException {
        try (FakeBackend backend = new FakeBackend(); Arena arena = Arena.ofShared()) {
            LoraAdapter adapter = adapter(backend, arena, config(generation));
            Tensor filled = filled(backend, arena, adapter, generation);
            backend.upload(filled, adapter.parameters());
            Checkpoints.save(output, adapter, "base", filled, filled,
                    new Checkpoints.State(step(generation), 0, 0, 0, generation, 0, 0, "settings"));
            PeftAdapter.write(output, adapter.config(), "base", adapter.toHost(arena));
        }
    }
}
