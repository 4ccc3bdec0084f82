package dev.penumbra.cli;

import dev.penumbra.expose.Calibration;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import java.io.IOException;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;

/** Which blocks of MLP neurons training computes. */
final class SparsityOptions {

    /**
     * Without a budget: what {@code jmh/results/quality.md} supports. A forward pass that leaves something out is a bias that an
     * adapter learns to correct; a backward pass that does only makes the gradient noisier.
     */
    private static final double DEFAULT_COVERAGE_BOTH = 0.99;
    private static final double DEFAULT_COVERAGE_BACKWARD = 0.9;
    /** Without a calibration, which has a size of its own. */
    private static final int DEFAULT_BLOCK = 128;

    @Option(names = {"--mlp-sparsity",
            "--sparsity"}, defaultValue = "off", paramLabel = "POLICY", description = "What MLP blocks are chosen by: off, all, exact, oracle, predicted, static, random, seed or low-rank. predicted and low-rank need --calibration.")
    private SelectionPolicy policy;
    @Option(names = "--sparsity-pass", defaultValue = "backward", paramLabel = "PASS", description = "What is sparse: backward (the forward pass stays exact) or both.")
    private Pass pass;
    @Option(names = "--coverage", paramLabel = "X", description = "Part of the blocks' mass to cover, up to 1. Default: 1 with --budget, else 0.9 in the backward pass and 0.99 in both.")
    private @Nullable Double coverage;
    @Option(names = "--budget", defaultValue = "1", paramLabel = "X", description = "Largest part of a layer's blocks to compute, up to 1.")
    private double budget;
    @Option(names = "--mlp-block", paramLabel = "N", description = "Neurons of a block: 32, 64 or 128. Default: the calibration's, else 128.")
    private @Nullable Integer block;
    @Option(names = "--rows-per-list", defaultValue = "0", paramLabel = "N", description = "Tokens that share a choice of blocks, a multiple of 128; 0: the whole batch.")
    private int rowsPerList;
    @Option(names = "--dense-warmup", defaultValue = "0", paramLabel = "X", description = "Part of the steps that come first and are dense.")
    private double denseWarmup;
    @Option(names = "--calibration", paramLabel = "DIR", description = "What penumbra calibrate found out about this model.")
    private @Nullable Path calibration;
    @Option(names = "--sense-every", defaultValue = "0", paramLabel = "N", description = "Steps between measurements of the true coverage, each of which takes a dense forward pass; 0: none.")
    private int senseEvery;
    @Option(names = "--adjust-coverage", description = "Ask for more or less than --coverage where measurements find less or more.")
    private boolean adjust;

    /** Reads and checks the calibration of a model; null where none is given. */
    @Nullable
    Calibration calibration(CommandLine line, Path model) throws IOException {
        if (policy.needsCalibration() && calibration == null) {
            throw new ParameterException(line, "expected --calibration DIR with --mlp-sparsity " + policy.word()
                    + ", found none: penumbra calibrate makes one");
        }
        if (calibration == null) {
            return null;
        }
        if (policy == SelectionPolicy.OFF) {
            throw new ParameterException(line, "expected --mlp-sparsity with --calibration, found off");
        }
        try (ModelFolder folder = ModelFolder.open(model)) {
            return Calibration.read(calibration, folder);
        }
    }

    SparsityConfig config(CommandLine line, @Nullable Calibration found) {
        if (policy == SelectionPolicy.OFF) {
            return SparsityConfig.OFF;
        }
        try {
            double unasked = pass == Pass.BOTH ? DEFAULT_COVERAGE_BOTH : DEFAULT_COVERAGE_BACKWARD;
            return new SparsityConfig(policy, pass, coverage != null ? coverage : budget < 1 ? 1 : unasked, budget,
                    block != null ? block : found != null ? found.manifest().blockSize() : DEFAULT_BLOCK, rowsPerList,
                    denseWarmup, senseEvery, adjust);
        } catch (IllegalArgumentException wrong) {
            throw new ParameterException(line, wrong.getMessage());
        }
    }
}
