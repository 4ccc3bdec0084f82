package dev.penumbra.train;

import java.util.List;
import java.util.OptionalDouble;

/**
 * Which part of its blocks a step computed, of its MLPs' or of its attention's, of its last micro-batch. A dense layer keeps
 * and covers 1.
 *
 * @param kept the part of the blocks, by layer; attention's are counted on and below the diagonals
 * @param covered their part of the scores that they were chosen by, by layer
 * @param cut the part of a layer's lists that wanted more blocks than fit, by layer
 * @param trueCoverage where the step measured it: the lists' part of the true mass, by layer; else empty
 */
public record StepSparsity(List<Double> kept, List<Double> covered, List<Double> cut, List<Double> trueCoverage) {

    public StepSparsity {
        kept = List.copyOf(kept);
        covered = List.copyOf(covered);
        cut = List.copyOf(cut);
        trueCoverage = List.copyOf(trueCoverage);
    }

    public double meanKept() {
        return mean(kept).orElse(1);
    }

    public double meanCovered() {
        return mean(covered).orElse(1);
    }

    public double meanCut() {
        return mean(cut).orElse(0);
    }

    public OptionalDouble meanTrueCoverage() {
        return mean(trueCoverage);
    }

    private static OptionalDouble mean(List<Double> values) {
        return values.stream().mapToDouble(Double::doubleValue).average();
    }
}
