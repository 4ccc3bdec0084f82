package dev.penumbra.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.ResidentPages;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.io.InputStream;
import java.lang.foreign.Arena;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class OptWeightsTest {

    @TempDir
    Path folder;

    @Test
    void weightsOfIntegersAreRefusedByNameBeforeAnyIsLoaded() throws IOException {
        new RandomOpt(8, 2, 12, 1, 20, 24, 8, true, false).write(folder, new Random(1));
        Path file = folder.resolve("model.safetensors");
        String bytes = Files.readString(file, StandardCharsets.ISO_8859_1);
        String name = "model.decoder.layers.0.fc1.weight";
        int dtype = bytes.indexOf("\"F32\"", bytes.indexOf(name));
        Files.writeString(file, bytes.substring(0, dtype) + "\"I32\"" + bytes.substring(dtype + 5),
                StandardCharsets.ISO_8859_1);
        try (ModelFolder model = ModelFolder.open(folder);
                Backend backend = Backends.open(Device.CPU, 1, true);
                Arena arena = Arena.ofShared()) {
            assertThatThrownBy(() -> Opt.open(backend, arena, model, DType.BF16, List.of()))
                    .isInstanceOf(ModelException.class)
                    .hasMessage(folder + ": tensor " + name + ": expected F32, BF16 or F16, found I32");
        }
    }

    @Test
    void mappedPagesAreGivenBackOncePacked() throws IOException {
        for (String name : new String[]{"config.json", "model.safetensors"}) {
            try (InputStream in = OptWeightsTest.class.getResourceAsStream("/dev/penumbra/demo/opt-6m/" + name)) {
                Files.copy(in, folder.resolve(name));
            }
        }
        Path file = folder.resolve("model.safetensors");
        try (ModelFolder model = ModelFolder.open(folder);
                Backend backend = Backends.open(Device.CPU, 1, true);
                Arena arena = Arena.ofShared()) {
            Opt.load(backend, arena, model, DType.BF16);
            long resident = ResidentPages.bytes(file);
            System.out.printf("resident after packing: %d of %d bytes%n", resident, Files.size(file));
            // Reading a small tensor maps the 64 KiB around it, its packed neighbours' too: a constant for each tensor.
            assertThat(resident).isLessThan(Files.size(file) / 4);
        }
    }
}
