package dev.penumbra.jmh;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;
import tools.jackson.databind.json.JsonMapper;

class QualityTableTest {

    private static final String DENSE = """
            {"key": "dense", "policy": "off", "pass": "backward", "block": 128, "rows_per_list": 0, "coverage": 1, "budget": 1,
             "ordered": true, "spread": "a layer", "seed": %d, "dense_eval": %s, "kept": 1, "step_ms": 4}""";

    @Test
    void seedsOfOneWayAreARowBesideDense() {
        String oracle = """
                {"key": "o", "policy": "oracle", "pass": "backward", "block": 32, "rows_per_list": 256, "coverage": 1,
                 "budget": 0.5, "ordered": true, "spread": "a layer", "seed": %d, "dense_eval": %s, "kept": 0.5, "step_ms": 3
                 %s}""";
        String measured = """
                , "before": {"true_coverage": 0.8, "kept": 0.5, "oracle_coverage": 1.0},
                "after": {"true_coverage": 0.9, "kept": 0.5, "oracle_coverage": 1.0}, "gradient_cosine": [0.9, 0.7]""";
        String json = """
                {"command": "jmh/run quality", "date": "2026-01-02", "versions": {"backend": "a device"}, "untuned_eval": 3.5,
                 "base": {"shape": "opt-125m", "tokens": 1e8, "distinct_tokens": 4e7, "held_out_loss": 1.25},
                 "quality": [%s, %s, %s, %s]}
                """
                .formatted(DENSE.formatted(1, "2.00"), oracle.formatted(1, "2.02", measured), DENSE.formatted(2, "2.02"),
                        oracle.formatted(2, "2.04", ""));
        assertThat(QualityTable.of(new JsonMapper().readTree(json)))
                .contains("opt-125m, trained on 100M tokens of Python, 40M of them distinct (held-out loss 1.250)")
                .contains("Dense LoRA: 2.0100, its seeds from 2.0000 to 2.0200 (1.00%)")
                .contains("| dense |  |  |  |  | 1.000 | 2.0100 |  | 2 | 0.0200 |  |  |  | 4.0 |")
                .contains(
                        "| oracle | backward | 32 | 256 | 0.50 a layer | 0.500 | 2.0300 | +1.00% | 2 | 0.0200 | 0.8000, 0.9000 | "
                                + "0.800, 0.900 | 0.8000, 0.7000 | 3.0 |")
                .endsWith("`jmh/run quality`; a device; 2026-01-02.\n");
    }

    @Test
    void everyWayHasAKeyOfItsOwn() {
        Set<String> keys = new HashSet<>();
        for (List<Quality> part : List.of(Quality.main(), Quality.more())) {
            part.forEach(quality -> assertThat(keys.add(quality.key())).as(quality.key()).isTrue());
        }
        assertThat(Quality.main().getFirst()).isEqualTo(Quality.DENSE);
        assertThat(Quality.ofAttention().getFirst()).isEqualTo(Quality.DENSE);
        Quality.ofAttention().stream().skip(1)
                .forEach(quality -> assertThat(keys.add(quality.key())).as(quality.key()).isTrue());
    }
}
