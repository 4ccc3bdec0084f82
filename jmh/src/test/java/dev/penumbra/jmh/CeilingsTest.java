package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.openjdk.jmh.runner.options.Options;
import org.openjdk.jmh.runner.options.OptionsBuilder;

class CeilingsTest {

    private static final Ceilings MEASURED = new Ceilings(List.of("{\"device\": \"a GPU\"}",
            "{\"what\": \"copy\", \"bytes\": 33554432, \"ms\": 0.0098, \"tbps\": 3.4}",
            "{\"what\": \"copy\", \"ms\": 0.5, \"tbps\": 4.2}",
            "{\"what\": \"gemm.forward\", \"shape\": \"opt-1.3b\", \"layer\": \"qkv\", \"tokens\": 4096, \"tflops\": 700}",
            "{\"what\": \"gemm.forward\", \"shape\": \"opt-1.3b\", \"layer\": \"out\", \"tokens\": 4096, \"tflops\": 600}",
            "{\"what\": \"gemm.backward\", \"shape\": \"opt-1.3b\", \"layer\": \"out\", \"tokens\": 4096, \"tflops\": 650}",
            "{\"what\": \"gemm.forward\", \"shape\": \"opt-1.3b\", \"layer\": \"out\", \"tokens\": 4096, \"tflops\": 620, \"epilogue\": \"residual\"}",
            "{\"what\": \"attention.forward\", \"shape\": \"opt-1.3b\", \"batch\": 16, \"length\": 256, \"tflops\": 300}"));

    private static Map<String, String> params(String... more) {
        Map<String, String> params = new HashMap<>(Map.of("shape", "OPT_1_3B", "batch", "4", "seqLen", "1024"));
        for (int i = 0; i < more.length; i += 2) {
            params.put(more[i], more[i + 1]);
        }
        return params;
    }

    @Test
    void aProductIsMeasuredByTheSameProduct() {
        assertThat(MEASURED.of("gemm.forward", params("layer", "OUT"), List.of("gflops")))
                .contains(new Ceilings.Ceiling("cuBLAS", "gflops", 600_000));
        assertThat(MEASURED.of("gemm.backward", params("layer", "OUT"), List.of("gflops")))
                .contains(new Ceilings.Ceiling("cuBLAS", "gflops", 650_000));
        assertThat(MEASURED.of("gemm.forward", params("layer", "FC1"), List.of("gflops"))).isEmpty();
        assertThat(MEASURED.of("crossentropy.loss", params(), List.of("gflops")))
                .contains(new Ceilings.Ceiling("cuBLAS", "gflops", 700_000));
    }

    @Test
    void aProductStandsBesideAnEpilogueOfCublasToo() {
        assertThat(MEASURED.withEpilogue("gemm.forward", params("layer", "OUT")))
                .contains(new Ceilings.Ceiling("residual", "gflops", 620_000));
        assertThat(MEASURED.withEpilogue("gemm.backward", params("layer", "OUT"))).isEmpty();
        assertThat(MEASURED.withEpilogue("crossentropy.loss", params())).isEmpty();
    }

    @Test
    void attentionIsMeasuredBySamplesOfTheSameLength() {
        assertThat(MEASURED.of("attention.forward", params("sampleLength", "256"), List.of("gflops")))
                .contains(new Ceilings.Ceiling("SDPA", "gflops", 300_000));
        assertThat(MEASURED.of("attention.forward", params("sampleLength", "128"), List.of("gflops"))).isEmpty();
    }

    @Test
    void whatStreamsIsMeasuredByALargeCopyAndByOneOfItsSize() {
        assertThat(MEASURED.of("lora.project", params(), List.of("gflops", "gbps")))
                .contains(new Ceilings.Ceiling("a large copy", "gbps", 4200));
        assertThat(MEASURED.ofCopy(33554432)).hasValue(3400);
        assertThat(MEASURED.ofCopy(33554436)).isEmpty();
    }

    @Test
    void noLinesAreRefused() {
        assertThatThrownBy(() -> new Ceilings(List.of("warning"))).hasMessageContaining("ceilings.py");
    }

    @Test
    void aGpusRunIsShortUnlessItIsAskedOtherwise() {
        Options asked = new OptionsBuilder().param("shape", "OPT_2_7B").forks(1).include("Gemm").build();
        Options chosen = BenchmarksCommand.onCuda(asked);

        assertThat(chosen.getParameter("device").get()).containsExactly("CUDA");
        assertThat(chosen.getParameter("shape").get()).containsExactly("OPT_2_7B");
        assertThat(chosen.getParameter("batch").get()).containsExactly("4");
        assertThat(chosen.getForkCount().get()).isEqualTo(1);
        assertThat(chosen.getExcludes()).isEmpty();
        assertThat(BenchmarksCommand.onCuda(new OptionsBuilder().build()).getExcludes()).containsExactly("StepBenchmark");
    }
}
