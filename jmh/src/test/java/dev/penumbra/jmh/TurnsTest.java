package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class TurnsTest {

    @TempDir
    private Path folder;

    /** Two turns of a process, each of which leaves a line in a file. */
    private List<String> process(String name, String end) {
        String turn = "echo ready; read line; echo " + name + " >> " + folder.resolve("log") + "; ";
        return List.of("sh", "-c", turn + turn + end);
    }

    @Test
    void processesTrainOneAtATimeAndTheirResultsComeInTheirOrder() throws Exception {
        assertThat(Turns.run(List.of(process("a", "echo one"), process("b", "echo two")))).containsExactly("one", "two");
        assertThat(Files.readAllLines(folder.resolve("log"))).containsExactly("a", "b", "a", "b");
    }

    @Test
    void aProcessThatFailsIsNamed() {
        assertThatThrownBy(() -> Turns.run(List.of(process("a", "echo one"), process("b", "exit 1"))))
                .isInstanceOf(IOException.class).hasMessageContaining("found a failure of sh -c echo ready");
        assertThatThrownBy(() -> Turns.run(List.of(process("a", "echo one; exit 1")))).isInstanceOf(IOException.class);
    }
}
