package dev.penumbra.cli;

import dev.penumbra.expose.AttentionCalibration;
import dev.penumbra.expose.Calibration;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import java.io.IOException;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;

/** Which blocks of MLP neurons and of attention's keys training computes. */
final class SparsityOptions {

    /**
     * Without a budget: what {@code jmh/results/quality.md} supports for MLPs, and what attention takes over from them. A
     * forward pass that leaves something out is a bias that an adapter learns to correct; a backward pass that does only makes
     * the gradient noisier.
     */
    private static final double DEFAULT_COVERAGE_BOTH = 0.99;
    private static final double DEFAULT_COVERAGE_BACKWARD = 0.9;
    /** Without a calibration, which has a size of its own. */
    private static final int DEFAULT_BLOCK = 128;

    @Option(names = "--sparsity", paramLabel = "POLICY", description = "Sets --mlp-sparsity and --attention-sparsity, where they are not given: off, all, exact, oracle, predicted, static, random, seed or low-rank. Attention takes bigbird for seed, predicted for low-rank, and stays dense where static or predicted find nothing of it in a calibration.")
    private @Nullable SelectionPolicy policy;
    @Option(names = "--mlp-sparsity", paramLabel = "POLICY", description = "What MLP blocks are chosen by: off, all, exact, oracle, predicted, static, random, seed or low-rank. predicted and low-rank need --calibration. Default: --sparsity's, else off.")
    private @Nullable SelectionPolicy mlpPolicy;
    @Option(names = "--attention-sparsity", paramLabel = "POLICY", description = "What blocks of keys heads attend to are chosen by: off, all, exact, oracle, predicted, static, random, bigbird or longformer. predicted and static need --calibration. Default: --sparsity's, else off.")
    private @Nullable AttentionPolicy attentionPolicy;
    @Option(names = "--sparsity-pass", defaultValue = "backward", paramLabel = "PASS", description = "What is sparse: backward (the forward pass stays exact) or both.")
    private Pass pass;
    @Option(names = "--coverage", paramLabel = "X", description = "Part of the MLP blocks' mass to cover, up to 1; all, exact and seed take none. Default: 1 with --budget, else 0.9 in the backward pass and 0.99 in both.")
    private @Nullable Double coverage;
    @Option(names = "--budget", defaultValue = "1", paramLabel = "X", description = "Largest part of a layer's MLP blocks to compute, up to 1; all takes none.")
    private double budget;
    @Option(names = "--mlp-block", paramLabel = "N", description = "Neurons of a block: 32, 64 or 128. Default: the calibration's, else 128.")
    private @Nullable Integer block;
    @Option(names = "--attention-coverage", paramLabel = "X", description = "Part of the attention blocks' softmax mass to cover, up to 1; all, exact, bigbird and longformer take none. Default: 1 with --attention-budget, else 0.9 in the backward pass and 0.99 in both.")
    private @Nullable Double attentionCoverage;
    @Option(names = "--attention-budget", defaultValue = "1", paramLabel = "X", description = "Largest part of a layer's attention blocks to compute, up to 1, counted on and below the diagonals; all and exact take none. bigbird and longformer grow up to it; at 1 they have their papers' sizes.")
    private double attentionBudget;
    @Option(names = "--attention-block", paramLabel = "N", description = "Rows of an attention block: 128, or on the CPU 64. Default: the calibration's, else 128.")
    private @Nullable Integer attentionBlock;
    @Option(names = "--rows-per-list", defaultValue = "0", paramLabel = "N", description = "Tokens that share a choice of MLP blocks, a multiple of 128; 0: the whole batch, as seed has it.")
    private int rowsPerList;
    @Option(names = "--dense-warmup", defaultValue = "0", paramLabel = "X", description = "Part of the steps that come first and are dense.")
    private double denseWarmup;
    @Option(names = "--calibration", paramLabel = "DIR", description = "What penumbra calibrate found out about this model.")
    private @Nullable Path calibration;
    @Option(names = "--sense-every", defaultValue = "0", paramLabel = "N", description = "Steps between measurements of the true coverage, each of which takes a dense forward pass; 0: none.")
    private int senseEvery;
    @Option(names = "--adjust-coverage", description = "Ask for more or less than a coverage below 1 where measurements find less or more; with --sense-every.")
    private boolean adjust;

    /**
     * What a run is asked for.
     *
     * @param calibration null where none is given
     * @param note what attention does other than it was asked to; empty: nothing
     */
    record Asked(SparsityConfig mlp, AttentionConfig attention, @Nullable Calibration calibration, String note) {

        @Nullable
        AttentionExposure exposure() {
            return calibration == null ? null : calibration.attention().orElse(null);
        }

        boolean isOff() {
            return mlp.isOff() && attention.isOff();
        }
    }

    /** Refuses wrong usage, as far as it can be seen without opening anything. */
    void check(CommandLine line) {
        if (mlp().needsCalibration() && calibration == null) {
            throw missing(line, (mlpPolicy != null ? "--mlp-sparsity " : "--sparsity ") + mlp().word());
        }
        if (attentionPolicy != null && attentionPolicy.needsCalibration() && calibration == null) {
            throw missing(line, "--attention-sparsity " + attentionPolicy.word());
        }
        if (calibration != null && mlp() == SelectionPolicy.OFF && attention() == AttentionPolicy.OFF) {
            throw new ParameterException(line, "expected --mlp-sparsity, --attention-sparsity or --sparsity with "
                    + "--calibration, found off");
        }
        if (policy == null) {
            refuseUnused(line, mlpPolicy, "--mlp-sparsity or --sparsity", "--coverage", "--budget", "--mlp-block",
                    "--rows-per-list");
            refuseUnused(line, attentionPolicy, "--attention-sparsity or --sparsity", "--attention-coverage",
                    "--attention-budget", "--attention-block");
            refuseUnused(line, mlpPolicy != null ? mlpPolicy : attentionPolicy,
                    "--sparsity, --mlp-sparsity or --attention-sparsity", "--sparsity-pass", "--dense-warmup",
                    "--sense-every",
                    "--adjust-coverage");
        }
        SparsityConfig ofMlp = mlp(line, null);
        AttentionConfig ofAttention = attention(line, attention(), null);
        if (adjust && !ofMlp.adjust() && !ofAttention.adjust() && !(ofMlp.isOff() && ofAttention.isOff())) {
            throw new ParameterException(line, senseEvery == 0
                    ? "expected --sense-every with --adjust-coverage, found no measurements that it adjusts by"
                    : "expected a coverage below 1 with --adjust-coverage, found none that is adjusted");
        }
    }

    /** A run that leaves nothing out, though it was told how much, is not what was meant; one that is told to be off may be. */
    private static void refuseUnused(CommandLine line, @Nullable Enum<?> given, String needed, String... options) {
        for (String option : options) {
            if (given == null && line.getParseResult().hasMatchedOption(option)) {
                throw new ParameterException(line, "expected " + needed + " with " + option
                        + ", found none: every block would be computed");
            }
        }
    }

    private static ParameterException missing(CommandLine line, String option) {
        return new ParameterException(line,
                "expected --calibration DIR with " + option + ", found none: penumbra calibrate makes one");
    }

    /** Reads the calibration of a model where one is given. */
    Asked read(CommandLine line, Path model) throws IOException {
        Calibration found = null;
        if (calibration != null) {
            try (ModelFolder folder = ModelFolder.open(model)) {
                found = Calibration.read(calibration, folder);
            }
        }
        AttentionCalibration known = found == null ? null : found.attention().orElse(null);
        AttentionPolicy wanted = attention();
        String note = "";
        if (wanted.needsCalibration() && known == null) {
            if (attentionPolicy != null) {
                throw new ParameterException(line, "expected a calibration of attention with --attention-sparsity "
                        + wanted.word() + ", found one without in " + calibration
                        + ": penumbra calibrate makes one on samples of two attention blocks or more");
            }
            note = "Attention stays dense: "
                    + (found == null ? "no calibration is given" : calibration + " tells nothing of it");
            wanted = AttentionPolicy.OFF;
        }
        return new Asked(mlp(line, found), attention(line, wanted, known), found, note);
    }

    private SelectionPolicy mlp() {
        return mlpPolicy != null ? mlpPolicy : policy != null ? policy : SelectionPolicy.OFF;
    }

    private AttentionPolicy attention() {
        return attentionPolicy != null
                ? attentionPolicy
                : policy != null ? AttentionPolicy.nearest(policy) : AttentionPolicy.OFF;
    }

    private double coverage(@Nullable Double asked, double limit, boolean taken) {
        if (asked != null) {
            return asked;
        }
        return limit < 1 || !taken ? 1 : pass == Pass.BOTH ? DEFAULT_COVERAGE_BOTH : DEFAULT_COVERAGE_BACKWARD;
    }

    /** Of MLPs and attention, what has a coverage follows what is measured; the option is for both. */
    private boolean adjusts(double asked) {
        return adjust && senseEvery > 0 && asked < 1;
    }

    private SparsityConfig mlp(CommandLine line, @Nullable Calibration found) {
        if (mlp() == SelectionPolicy.OFF) {
            return SparsityConfig.OFF;
        }
        double asked = coverage(coverage, budget, mlp().takesCoverage());
        return Usage.of(line, () -> new SparsityConfig(mlp(), pass, asked, budget,
                block != null ? block : found != null ? found.manifest().blockSize() : DEFAULT_BLOCK, rowsPerList,
                denseWarmup, senseEvery, adjusts(asked)));
    }

    private AttentionConfig attention(CommandLine line, AttentionPolicy wanted, @Nullable AttentionCalibration known) {
        if (wanted == AttentionPolicy.OFF) {
            return AttentionConfig.OFF;
        }
        double asked = coverage(attentionCoverage, attentionBudget, wanted.takesCoverage());
        return Usage.of(line, () -> new AttentionConfig(wanted, pass, asked, attentionBudget,
                attentionBlock != null ? attentionBlock : known != null ? known.blockSize() : AttentionConfig.DEFAULT_BLOCK,
                denseWarmup, senseEvery, adjusts(asked)));
    }
}
