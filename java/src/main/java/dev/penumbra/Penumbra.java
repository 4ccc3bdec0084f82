package dev.penumbra;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.Opt;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.List;

/**
 * A model on a device with all that belongs to it: the way in for programs.
 *
 * <pre>{@code
 * try (Penumbra penumbra = Penumbra.load(Path.of("opt-125m"))) {
 *     LoraAdapter adapter = penumbra.newAdapter(LoraConfig.ofRank(8), 42);
 *     TrainConfig config = TrainConfig.builder().steps(100).output(Path.of("out")).build();
 *     new Trainer(penumbra.model(), adapter, config, dataset, null).listener(System.out::println).run();
 * }
 * }</pre>
 */
public final class Penumbra implements AutoCloseable {

    private final Backend backend;
    private final Arena arena;
    private final LanguageModel model;
    private final ModelFolder folder;

    private Penumbra(Backend backend, Arena arena, ModelFolder folder, LanguageModel model) {
        this.backend = backend;
        this.arena = arena;
        this.folder = folder;
        this.model = model;
    }

    /**
     * Loads a Hugging Face model folder on the CPU: bf16, all processors, reproducible. Errors are those of
     * {@link #load(Path, Device, int, DType)}.
     */
    public static Penumbra load(Path directory) throws IOException {
        return load(directory, Device.CPU, 0, DType.BF16);
    }

    /**
     * Loads a Hugging Face model folder.
     *
     * @param threads CPU threads an operation may use; 0: as many as there are processors
     * @param compute what products are computed in, and activations stored as: F32 or BF16
     * @throws IOException when there is no such folder, or a file of it is missing or cannot be read
     * @throws dev.penumbra.io.WeightsFileException when a weights file is not what its format says
     * @throws dev.penumbra.model.ModelException when the model is none that is computed, naming the file and key or tensor, or does
     *         not fit into memory
     * @throws dev.penumbra.backend.BackendException when the device cannot be used
     */
    public static Penumbra load(Path directory, Device device, int threads, DType compute) throws IOException {
        Penumbra penumbra = open(directory, device, threads, compute);
        try {
            penumbra.model.load();
            return penumbra;
        } catch (IOException | RuntimeException failure) {
            penumbra.close();
            throw failure;
        }
    }

    /** As {@link #load(Path, Device, int, DType)}, without the weights: what they and a run will need can be planned before. */
    public static Penumbra open(Path directory, Device device, int threads, DType compute) throws IOException {
        return open(directory, device, threads, compute, List.of());
    }

    /**
     * As {@link #open(Path, Device, int, DType)}, with the MLPs' neurons in another order in memory, which changes no result:
     * adapters are read and written in the checkpoint's.
     *
     * @param orders one a layer; empty: the checkpoint's
     */
    public static Penumbra open(Path directory, Device device, int threads, DType compute, List<NeuronOrder> orders)
            throws IOException {
        ModelFolder folder = ModelFolder.open(directory);
        Arena arena = Arena.ofShared();
        Backend backend = null;
        try {
            backend = Backends.open(device, threads, true);
            return new Penumbra(backend, arena, folder, Opt.open(backend, arena, folder, compute, orders));
        } catch (IOException | RuntimeException failure) {
            arena.close();
            if (backend != null) {
                backend.close();
            }
            folder.close();
            throw failure;
        }
    }

    public LanguageModel model() {
        return model;
    }

    public Path directory() {
        return folder.directory();
    }

    /** The model's folder, which stays open as long as this. */
    public ModelFolder folder() {
        return folder;
    }

    /**
     * An adapter that changes nothing yet: B is zero. It lives as long as this.
     *
     * @param seed of A's values
     */
    public LoraAdapter newAdapter(LoraConfig config, long seed) {
        return LoraAdapter.create(backend, arena, config, model.adaptableLayers(), model.peftPrefix(), seed);
    }

    /**
     * Reads an adapter in PEFT's format. It lives as long as this.
     *
     * @throws IOException naming the folder and what does not fit this model, or what is not computed
     */
    public LoraAdapter readAdapter(Path folder) throws IOException {
        try (PeftAdapter saved = PeftAdapter.read(folder)) {
            return LoraAdapter.of(backend, arena, saved.config(), model.adaptableLayers(), model.peftPrefix(),
                    saved.tensors());
        } catch (IllegalArgumentException mismatch) {
            throw new IOException(folder + ": " + mismatch.getMessage(), mismatch);
        }
    }

    /** Writes an adapter in PEFT's format; a crash at any moment leaves the old one or the new one. */
    public void writeAdapter(LoraAdapter adapter, Path folder) throws IOException {
        try (Arena host = Arena.ofConfined()) {
            PeftAdapter.write(folder, adapter.config(), directory().toString(), adapter.toHost(host));
        }
    }

    /** Frees the device and all that lives there: model and adapters must not be used after. A second time does nothing. */
    @Override
    public void close() {
        if (!arena.scope().isAlive()) {
            return;
        }
        model.close();
        arena.close();
        backend.close();
        folder.close();
    }

    /** The folder and what was read from it. */
    @Override
    public String toString() {
        return directory() + ": " + model;
    }
}
