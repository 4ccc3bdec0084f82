package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import org.junit.jupiter.api.Test;

class ReadmeTableTest {

    @Test
    void theReadmeShowsWhatTheResultsSay() throws IOException {
        String readme = Files.readString(Results.module().resolve("../README.md"));

        String table = ReadmeTable.of(Results.readAll());

        assertThat(readme).as("README.md; jmh/run table --write brings it up to date")
                .isEqualTo(ReadmeTable.replaceIn(readme, table));
    }
}
