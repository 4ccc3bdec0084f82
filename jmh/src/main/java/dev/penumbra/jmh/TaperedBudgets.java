package dev.penumbra.jmh;

import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import java.util.Optional;

/**
 * A calibration whose upper layers keep more blocks than its lower ones, with the same mean: what a layer's backward pass leaves
 * out is missing from the gradients of all layers below it.
 */
record TaperedBudgets(MlpExposure of, double budget, double headroom) implements MlpExposure {

    /** What the lowest layer keeps, as a part of the mean. */
    private static final double LOWEST = 0.5;
    /** Asked for, it leaves nothing out that there is room for. */
    static final double COVERAGE = 0.9999;

    @Override
    public int layers() {
        return of.layers();
    }

    @Override
    public int neurons() {
        return of.neurons();
    }

    @Override
    public NeuronOrder order(int layer) {
        return of.order(layer);
    }

    @Override
    public float[] mass(int layer) {
        return of.mass(layer);
    }

    @Override
    public float[] fired(int layer) {
        return of.fired(layer);
    }

    @Override
    public Optional<LowRankPredictor> predictor(int layer, int blockSize) {
        return of.predictor(layer, blockSize);
    }

    @Override
    public Optional<LowRankPredictor> lowRank(int layer, int blockSize) {
        return of.lowRank(layer, blockSize);
    }

    /** Linear in the layer; less what is added to it as headroom. */
    @Override
    public double keptAt(int layer, int blockSize, Pass pass, double coverage, int rowsPerList) {
        double along = layers() == 1 ? 0.5 : (double) layer / (layers() - 1);
        double kept = budget * (LOWEST + 2 * (1 - LOWEST) * along);
        int blocks = neurons() / blockSize;
        // Rounded to whole blocks here: the headroom's product is rounded up.
        return (Math.max(1, Math.round(kept * blocks)) - 0.01) / blocks / headroom;
    }

    @Override
    public String identity() {
        return of.identity() + "-tapered";
    }
}
