package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.data.Dataset;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import tools.jackson.databind.JsonNode;

/** How near to PEFT a fixture's numbers have to be. Errors are relative; a matrix's is that of its Euclidean norm. */
final class PeftParity {

    static final double F32_LOGITS = 1e-5;
    static final double F32_LOSS = 1e-5;
    static final double F32_GRADIENT = 1e-4;
    static final double TWENTY_LOSSES = 1e-4;
    static final double BF16_LOSS = 1e-3;
    /** Of PEFT's own bf16 error. */
    static final double BF16_FACTOR = 2;
    /** Half a unit in bf16's last place: an error that a single rounding makes is no error. */
    static final double BF16_FLOOR = 0x1p-9;

    /**
     * A run's largest errors.
     *
     * @param ratio bf16 only: the largest error as a part of what is allowed, without the loss's
     */
    record Worst(double logits, double loss, double gradient, double ratio) {
        @Override
        public String toString() {
            return String.format("logits %.1e, loss %.1e, worst gradient %.1e", logits, loss, gradient)
                    + (ratio > 0 ? String.format(", at most %.2f of what bf16 is allowed", ratio) : "");
        }
    }

    private PeftParity() {
    }

    static Worst requireF32(String name, PeftFixture fixture) {
        Map<String, Double> errors = fixture.errors();
        errors.forEach((key, error) -> assertThat(error).as(name + ": " + key)
                .isLessThan(switch (key) {
                    case "loss" -> F32_LOSS;
                    case "logits" -> F32_LOGITS;
                    default -> F32_GRADIENT;
                }));
        return worst(errors, 0);
    }

    /**
     * Against float64: the errors of PEFT in bf16 are the measure.
     *
     * @param each every matrix is measured by PEFT's error in it. Otherwise by the larger of that and the root mean square of
     *     PEFT's errors in all matrices: in a matrix whose PEFT error is far below that, few neurons decide, and they
     *     happened to round to the right side of zero
     */
    static Worst requireBf16(String name, PeftFixture fixture, boolean each) {
        Map<String, Double> errors = fixture.errors();
        assertThat(errors.get("loss")).as(name + ": loss").isLessThanOrEqualTo(BF16_LOSS);
        double worst = 0;
        for (Map.Entry<String, Double> part : partsOfAllowed(fixture, errors, each).entrySet()) {
            assertThat(part.getValue()).as(name + ": " + part.getKey() + ", as a part of what is allowed")
                    .isLessThanOrEqualTo(1);
            worst = Math.max(worst, part.getValue());
        }
        return worst(errors, worst);
    }

    /**
     * For models that differ in nothing but their random values. In one of them a matrix's error is partly luck, PEFT's as well
     * as ours: it depends on which neurons round to the wrong side of zero. So every matrix, measured by PEFT's error in it, is
     * held to what is allowed in the geometric mean over the models; the loss is in each.
     */
    static Worst requireBf16(String name, List<PeftFixture> models) {
        Map<String, Double> logSums = new TreeMap<>();
        double peftLoss = 0;
        Worst largest = new Worst(0, 0, 0, 0);
        for (PeftFixture model : models) {
            Map<String, Double> errors = model.errors();
            assertThat(errors.get("loss")).as(name + ": loss").isLessThanOrEqualTo(BF16_LOSS);
            peftLoss = Math.max(peftLoss, bf16Errors(model).required("loss").doubleValue());
            partsOfAllowed(model, errors, true).forEach((key, part) -> logSums.merge(key, Math.log(part), Double::sum));
            Worst here = worst(errors, 0);
            largest = new Worst(Math.max(largest.logits, here.logits), Math.max(largest.loss, here.loss),
                    Math.max(largest.gradient, here.gradient), 0);
        }
        System.out.printf("%s: the largest error of a loss over %d models %.1e, PEFT's %.1e%n", name, models.size(),
                largest.loss,
                peftLoss);
        double worst = 0;
        for (Map.Entry<String, Double> sum : logSums.entrySet()) {
            double part = Math.exp(sum.getValue() / models.size());
            assertThat(part)
                    .as(name + ": " + sum.getKey() + ", as a part of what is allowed, over " + models.size() + " models")
                    .isLessThanOrEqualTo(1);
            worst = Math.max(worst, part);
        }
        return new Worst(largest.logits, largest.loss, largest.gradient, worst);
    }

    private static JsonNode bf16Errors(PeftFixture fixture) {
        return fixture.told.path("bf16_errors");
    }

    /** The errors of logits and gradients, each divided by the largest that is allowed. */
    private static Map<String, Double> partsOfAllowed(PeftFixture fixture, Map<String, Double> errors, boolean each) {
        JsonNode peft = bf16Errors(fixture);
        double usual = each
                ? 0
                : Math.sqrt(errors.keySet().stream().filter(PeftParity::isGradient)
                        .mapToDouble(key -> Math.pow(peft.required(key).doubleValue(), 2)).average().orElseThrow());
        Map<String, Double> parts = new TreeMap<>(errors);
        parts.remove("loss");
        parts.replaceAll((key, error) -> {
            double measure = Math.max(peft.required(key).doubleValue(), isGradient(key) ? usual : 0);
            return error / (BF16_FACTOR * measure + BF16_FLOOR);
        });
        return parts;
    }

    private static boolean isGradient(String key) {
        return key.startsWith("grad.");
    }

    private static Worst worst(Map<String, Double> errors, double ratio) {
        double gradient = errors.keySet().stream().filter(PeftParity::isGradient).mapToDouble(errors::get)
                .max().orElseThrow();
        return new Worst(errors.get("logits"), errors.get("loss"), gradient, ratio);
    }

    /** Twenty steps of AdamW over all samples at once; returns the worst relative error of a step's loss. */
    static double requireTwentyLosses(String name, PeftFixture fixture, boolean pack) {
        double worst = worstOfTwentyLosses(name, fixture, pack);
        assertThat(worst).as(name + ": the worst of 20 losses").isLessThan(TWENTY_LOSSES);
        return worst;
    }

    /** As {@link #requireTwentyLosses}, without the requirement; the fixture's adapter is tuned afterwards. */
    static double worstOfTwentyLosses(String name, PeftFixture fixture, boolean pack) {
        Dataset data = fixture.data();
        TrainConfig config = TrainConfig.builder().steps(20).batchSize(data.size()).seqLen(fixture.model.maxPositions())
                .lr(fixture.told.path("lr").asDouble()).schedule(Schedule.CONSTANT).clip(0).pack(pack).shuffle(false)
                .build();
        List<Double> losses = new ArrayList<>();
        new Trainer(fixture.model, fixture.adapter, config, data, null).listener(m -> losses.add(m.loss())).run();
        assertThat(losses).as(name).hasSize(20);
        double worst = 0;
        for (int i = 0; i < 20; i++) {
            worst = Math.max(worst, Math.abs(losses.get(i) / fixture.told.path("losses").get(i).asDouble() - 1));
        }
        return worst;
    }
}
