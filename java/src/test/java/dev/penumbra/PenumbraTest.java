package dev.penumbra;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import dev.penumbra.backend.Device;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class PenumbraTest {

    @TempDir
    Path folder;

    @Test
    void closingASecondTimeDoesNothing() throws IOException {
        Penumbra penumbra = Penumbra.open(DemoModel.extract(folder.resolve("model")), Device.CPU, 1, DType.F32);
        penumbra.writeAdapter(penumbra.newAdapter(LoraConfig.ofRank(2), 1), folder.resolve("adapter"));
        PeftAdapter adapter = PeftAdapter.read(folder.resolve("adapter"));
        for (int i = 0; i < 2; i++) {
            penumbra.close();
            adapter.close();
        }
        assertThat(penumbra.directory()).isEqualTo(folder.resolve("model"));
        assertThatThrownBy(() -> penumbra.newAdapter(LoraConfig.ofRank(2), 1)).isInstanceOf(IllegalStateException.class);
    }
}
