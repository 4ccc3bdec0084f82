package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import picocli.CommandLine.Option;

/** Which model, where and in what it is computed: the options that several commands share. */
final class ModelOptions {

    enum DeviceName {
        cpu, cuda
    }

    enum DTypeName {
        f32, bf16
    }

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder.")
    Path model;

    @Option(names = "--dtype", defaultValue = "bf16", description = "f32 or bf16 (default: ${DEFAULT-VALUE}).")
    DTypeName dtype;

    @Option(names = "--device", defaultValue = "cpu", description = "cpu or cuda (default: ${DEFAULT-VALUE}).")
    DeviceName device;

    @Option(names = "--threads", defaultValue = "0", paramLabel = "N", description = "CPU threads; 0: all (default: ${DEFAULT-VALUE}).")
    int threads;

    Penumbra load() throws IOException {
        return Penumbra.load(model, device == DeviceName.cpu ? Device.CPU : Device.cuda(0), threads,
                dtype == DTypeName.f32 ? DType.F32 : DType.BF16);
    }
}
