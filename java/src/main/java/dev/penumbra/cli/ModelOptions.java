package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import picocli.CommandLine;
import picocli.CommandLine.Option;

/** Which model, where and in what it is computed: the options that several commands share. */
final class ModelOptions {

    /** What products are computed in. */
    enum Compute {
        F32, BF16
    }

    /** What {@code pnb_context_create} takes. */
    private static final int MOST_THREADS = 1024;

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder of an OPT; nothing is downloaded.")
    Path model;

    @Option(names = "--dtype", defaultValue = "bf16", paramLabel = "TYPE", description = "What products are computed in: f32 or bf16.")
    Compute dtype;

    @Option(names = "--device", defaultValue = "cpu", paramLabel = "DEVICE", description = "cpu or cuda, the first NVIDIA GPU.")
    Device.Kind device;

    @Option(names = "--threads", defaultValue = "0", paramLabel = "N", description = "CPU threads; 0: as many as there are processors.")
    int threads;

    /** Refuses wrong usage, as far as it can be seen without opening anything. */
    void check(CommandLine line) {
        requireThreads(line, threads);
    }

    static void requireThreads(CommandLine line, int threads) {
        Usage.require(line, threads >= 0 && threads <= MOST_THREADS, "0 to " + MOST_THREADS + " threads", threads);
    }

    /** Without its weights: they are loaded once a run is known to fit into memory. */
    Penumbra open() throws IOException {
        return open(List.of());
    }

    /** @param orders of each layer's neurons in memory; empty: the checkpoint's */
    Penumbra open(List<NeuronOrder> orders) throws IOException {
        return Penumbra.open(model, new Device(device, 0), threads, dtype == Compute.F32 ? DType.F32 : DType.BF16, orders);
    }

    Penumbra load() throws IOException {
        return Penumbra.load(model, new Device(device, 0), threads, dtype == Compute.F32 ? DType.F32 : DType.BF16);
    }
}
