package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.util.List;
import org.junit.jupiter.api.Test;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

class ReadmeTableTest {

    private static final JsonMapper JSON = new JsonMapper();

    private static final String CONDITIONS = """
            "date": "2026-01-02", "command": "jmh/run something",
            "machine": {"processor": "A processor", "processors": 2, "memory_gib": 24}, "versions": {"jvm": "25"}""";

    @Test
    void theReadmeShowsWhatTheResultsSay() throws IOException {
        String readme = Files.readString(Results.module().resolve("../README.md"));

        String table = ReadmeTable.of(Results.readAll());

        assertThat(readme).as("README.md; jmh/run table --write brings it up to date")
                .isEqualTo(ReadmeTable.replaceIn(readme, table));
    }

    @Test
    void aComparisonHasARowForEachRunWithTheCommand() {
        JsonNode report = JSON.readTree("{" + CONDITIONS
                + """
                        , "comparison": {"what": "a step", "unit": "ms", "peers": [{"name": "PEFT", "value": 2500, "peak_mib": 1500}],
                        "penumbra": [{"name": "dense", "value": 1500.4, "peak_mib": 750},
                        {"name": "sparse", "value": 1000, "peak_mib": 999.8}]}}""");

        assertThat(ReadmeTable.of(List.of(report))).isEqualTo("""
                `jmh/run something`

                | a step | ms | faster than PEFT | faster than dense | peak memory, MiB | of PEFT's |
                |---|---|---|---|---|---|
                | PEFT | 2500 |  |  | 1500 |  |
                | dense | 1500 | 1.67x |  | 750 | 0.50 |
                | sparse | 1000 | 2.50x | 1.50x | 1000 | 0.67 |

                2 x A processor; 24 GiB; jvm 25; 2026-01-02.

                """);
    }

    @Test
    void moreTokensASecondAreFaster() {
        JsonNode report = JSON.readTree("{" + CONDITIONS + """
                , "comparison": {"what": "E2E", "unit": "tokens/s", "peers": [{"name": "padded", "value": 50},
                {"name": "longest", "value": 300}], "penumbra": [{"name": "dense", "value": 900}]}}""");

        assertThat(ReadmeTable.comparison(report)).isEqualTo("""
                | E2E | tokens/s | faster than padded | faster than longest |
                |---|---|---|---|
                | padded | 50.0 |  |  |
                | longest | 300 |  |  |
                | dense | 900 | 18.00x | 3.00x |
                """);
    }

    @Test
    void aBenchmarkIsARowUnlessItComputesInF32() {
        String benchmark = """
                {"benchmark": "gemm.forward", "ms": %s, "gflops": 301.23, "params":
                {"shape": "OPT_1_3B", "batch": "2", "seqLen": "512", "layer": "FC1", "dtype": "%s"}}""";
        JsonNode report = JSON.readTree("{" + CONDITIONS + ", \"benchmarks\": [" + benchmark.formatted("1.25", "BF16") + ","
                + benchmark.formatted("9.75", "F32") + "]}");

        assertThat(ReadmeTable.of(List.of(report)))
                .contains("| gemm.forward | opt-1.3b, 2 x 512, fc1 | 1.25 | 301 |  |\n")
                .doesNotContain("9.75");
    }

    @Test
    void rowsOfListedBlocksSayHowMany() {
        String benchmark = """
                {"benchmark": "mlp.together", "ms": 1.5, "params": {"shape": "OPT_1_3B", "batch": "4", "seqLen": "1024",
                "kept": "%s", "blockSize": "32", "rowsPerList": "%s"}}""";
        JsonNode report = JSON.readTree("{" + CONDITIONS + ", \"benchmarks\": [" + benchmark.formatted("1", "256") + ","
                + benchmark.formatted("1", "256") + "," + benchmark.formatted("0.25", "256") + "]}");

        assertThat(ReadmeTable.of(List.of(report)))
                .containsOnlyOnce("| mlp.together | opt-1.3b, 4 x 1024 | 1.50 |")
                .contains("| mlp.together | opt-1.3b, 4 x 1024, 0.25 of its blocks of 32, a list for 256 rows | 1.50 |");
    }

    @Test
    void aGpusOperationsStandApartWithThePartOfItsCeiling() {
        String report = "{" + CONDITIONS + """
                , %s "benchmarks": [{"benchmark": "layernorm.forward", "ms": 0.01, "gbps": 3000, %s "params":
                {"device": "%s", "shape": "OPT_1_3B", "batch": "4", "seqLen": "1024"}}]}""";
        JsonNode cpu = JSON.readTree(report.formatted("", "", "CPU"));
        JsonNode gpu = JSON.readTree(report.formatted("\"ceilings\": [],",
                "\"ceiling\": \"a large copy\", \"of_ceiling\": 0.714, \"of_copy_of_its_size\": 0.882,", "CUDA")
                .replace("A processor", "Another"));

        assertThat(ReadmeTable.of(List.of(cpu, gpu)))
                .contains("| layernorm.forward | opt-1.3b, 4 x 1024 | 0.0100 |  | 3000 |\n")
                .contains("Operations on the GPU")
                .contains(
                        "| layernorm.forward | opt-1.3b, 4 x 1024 | 0.0100 |  | 3000 | 0.71 of a large copy, 0.88 of one of its size |\n")
                .contains("`jmh/run something`; 2 x Another;");
    }

    @Test
    void aProductStandsBesideCublasWithAndWithoutAnEpilogue() {
        JsonNode report = JSON.readTree("{" + CONDITIONS
                + """
                        , "ceilings": [], "benchmarks": [{"benchmark": "gemm.forward", "ms": 0.06, "gflops": 580000,
                        "ceiling": "cuBLAS", "of_ceiling": 0.911, "epilogue": "residual", "of_ceiling_with_epilogue": 0.972, "params":
                        {"device": "CUDA", "shape": "OPT_1_3B", "batch": "4", "seqLen": "1024", "layer": "OUT"}}]}""");

        assertThat(ReadmeTable.of(List.of(report))).contains("| 0.91 of cuBLAS, 0.97 of cuBLAS with residual |\n");
    }

    @Test
    void aReadmeWithoutTheMarkersIsRefused() {
        assertThatThrownBy(() -> ReadmeTable.replaceIn("# Penumbra\n", "")).hasMessageContaining(ReadmeTable.BEGIN);
    }
}
