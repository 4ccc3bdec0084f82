package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import picocli.CommandLine;

class ConfigFileTest {

    @TempDir
    Path folder;

    private Path yaml(String text) throws IOException {
        return Files.writeString(folder.resolve("run.yaml"), text);
    }

    private static String[] merged(String... arguments) throws ConfigFile.Invalid {
        return ConfigFile.of(new CommandLine(new Main()), arguments).arguments();
    }

    @Test
    void theFilesOptionsComeBeforeTheCommandLines() throws Exception {
        String file = yaml("""
                # what to try first
                lr: 1e-4
                batch_size: 2
                targets: [q_proj, fc1]
                no-shuffle: true
                no-pack: false
                output: "with spaces"
                """).toString();
        assertThat(merged("train", "--config", file, "--seed", "1")).containsExactly("train", "--lr=1.0E-4",
                "--batch-size=2",
                "--targets=q_proj,fc1", "--no-shuffle", "--output=with spaces", "--config", file, "--seed", "1");
    }

    @Test
    void anOptionOfTheCommandLineReplacesTheFiles() throws Exception {
        String file = yaml("lr: 1\nno-shuffle: true\ntargets: [fc1]\n").toString();
        assertThat(merged("--config=" + file, "train", "--lr", "2", "--no-shuffle", "--targets=fc2"))
                .containsExactly("--config=" + file, "train", "--lr", "2", "--no-shuffle", "--targets=fc2");
    }

    @Test
    void anEmptyFileAndNoFileChangeNothing() throws Exception {
        String file = yaml("# nothing yet\n").toString();
        assertThat(merged("eval", "--config", file)).containsExactly("eval", "--config", file);
        assertThat(merged("eval", "--data", "x")).containsExactly("eval", "--data", "x");
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', textBlock = """
            batch-sze: 2           | found batch-sze; the nearest is batch-size
            lora_rank: 4           | found lora_rank; the nearest is lora-r
            prompt: hello          | expected keys that are options of penumbra train, found prompt
            config: other.yaml     | found config
            lr:                    | key lr: expected a value, found nothing
            lr: [1, 2]             | key lr: expected a value, found [1,2]
            targets: [[a]]         | key targets: expected a value or a list, found [["a"]]
            no-pack: 3             | key no-pack: expected true or false, found 3
            - lr                   | expected keys and values, found array
            'lr: [1'               | line 1: expected YAML: while parsing a flow sequence: expected ',' or ']'
            """)
    void aWrongFileIsNamedWithItsKey(String text, String message) throws IOException {
        String file = yaml(text).toString();
        assertThatThrownBy(() -> merged("train", "--config", file)).isInstanceOf(ConfigFile.Invalid.class)
                .hasMessageStartingWith(file).hasMessageContaining(message);
    }

    @Test
    void aDuplicateKeyIsRefused() throws IOException {
        String file = yaml("lr: 1\nlr: 2\n").toString();
        assertThatThrownBy(() -> merged("train", "--config", file)).hasMessageContaining("uplicate");
    }

    @Test
    void whatIsWrongWithTheFileIsWrongUsage() throws IOException {
        String file = yaml("steps: many\n").toString();
        Cli.Outcome outcome = Cli.run("train", "--config", file);
        assertThat(outcome.code()).isEqualTo(2);
        assertThat(outcome.err()).startsWith("penumbra: " + file + ": key steps: ").hasLineCount(1);
        Cli.Outcome missing = Cli.run("train", "--config", "no-such.yaml");
        assertThat(missing.code()).isEqualTo(2);
        assertThat(missing.err().strip()).isEqualTo("penumbra: no-such.yaml: expected a file, found none");
    }
}
