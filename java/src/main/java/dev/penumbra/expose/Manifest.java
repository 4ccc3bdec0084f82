package dev.penumbra.expose;

import java.util.List;
import java.util.Map;
import java.util.function.ToDoubleFunction;
import org.jspecify.annotations.Nullable;

/**
 * What a calibration says of itself, in words and figures; the file's metadata has it as JSON.
 *
 * @param version of the file's layout
 * @param model name of the base model's folder
 * @param modelHash {@link dev.penumbra.io.ModelFolder#weightsHash}
 * @param rank of the predictors; of the singular vectors too
 * @param tokens that orders and predictors were made from
 * @param heldOutTokens that figures were measured on
 * @param attention what is said of attention; null where no sample was long enough, and in files of version 1
 */
public record Manifest(
        int version,
        String model,
        String modelHash,
        int hidden,
        int neurons,
        int blockSize,
        int listRows,
        int poolRows,
        int rank,
        double coverage,
        double budget,
        int seqLen,
        int batchSize,
        long seed,
        long tokens,
        long heldOutTokens,
        List<Layer> layers,
        @Nullable Attention attention) {

    /** @throws IllegalArgumentException naming what is missing, or none of a calibration's */
    public Manifest {
        require(model, "model");
        require(modelHash, "modelHash");
        require(layers, "layers");
        if (blockSize < 1) {
            throw new IllegalArgumentException("expected a blockSize of 1 or more, found " + blockSize);
        }
    }

    private static void require(@Nullable Object value, String name) {
        if (value == null) {
            throw new IllegalArgumentException("expected " + name + ", found none");
        }
    }

    /**
     * One layer's figures, on held-out text.
     *
     * @param order the chosen one's name
     * @param dense whether nearly every block is needed for the coverage: such a layer is better left dense
     * @param fired part of the activations that are above 0
     * @param silent part of the neurons that never fired
     * @param neuronsFor part of the neurons, the heaviest, that hold so much of the mass ("0.99")
     * @param orders each order that was tried, at the budget
     * @param blocksFor part of the blocks that the mean list needs for so much of its mass
     * @param coverageAt part of the mass in so many of a list's blocks ("0.25"), for the chosen order
     * @param list coverage at the budget, each list by itself
     * @param batch coverage at the budget, one list for a whole batch
     * @param drifted as {@code list}, under random adapters
     */
    public record Layer(
            String order,
            boolean dense,
            double fired,
            double silent,
            Map<String, Double> neuronsFor,
            List<Order> orders,
            Map<String, Double> blocksFor,
            Map<String, Double> coverageAt,
            Coverage list,
            Coverage batch,
            Coverage drifted) {
    }

    /**
     * An order of neurons.
     *
     * @param mass part of the activations' mass in each list's best blocks
     * @param gradient the same of the gradients' mass
     */
    public record Order(String name, double mass, double gradient) {
    }

    /**
     * The part of the mass that each policy's choice covers, all with as many blocks.
     *
     * @param oracle by the true mass
     * @param fixed by the means over sample text: the policy static
     * @param seed by the rule of the paper that this began with, for as many blocks
     */
    public record Coverage(double oracle, double predicted, double fixed, double random, double seed, double lowRank) {

        /** How near the predictor comes to what could be had. */
        public double shareOfOracle() {
            return predicted / oracle;
        }
    }

    /**
     * Of attention. Parts of blocks are of those on and below the diagonal.
     *
     * @param blockSize rows of a block
     * @param width blocks that tables and predictors reach to
     * @param poolRows rows over which a predictor's input is averaged
     * @param rank of the predictors
     * @param budget part of the blocks that policies are compared at
     * @param samples that were long enough, of the text that tables and predictors were made from
     * @param heldOutSamples likewise, of the text that figures are of
     * @param blocks of the longest of them
     * @param poolVersion of the patterns
     * @param patterns names, by their places in the pool
     * @param coverages that {@code blocksFor} is kept for
     */
    public record Attention(
            int blockSize,
            int width,
            int heads,
            int poolRows,
            int rank,
            double budget,
            int samples,
            int heldOutSamples,
            int blocks,
            int poolVersion,
            List<String> patterns,
            List<Double> coverages,
            List<AttentionLayer> layers) {

        public Attention {
            require(patterns, "patterns of attention");
            require(layers, "layers of attention");
        }

        /** Of figures that each layer has. */
        public double mean(ToDoubleFunction<AttentionLayer> figure) {
            return layers.stream().mapToDouble(figure).average().orElse(0);
        }
    }

    /**
     * One layer's attention, on held-out text.
     *
     * @param plain coverage at the budget
     * @param drifted the same under random adapters
     */
    public record AttentionLayer(List<AttentionHead> heads, AttentionCoverage plain, AttentionCoverage drifted) {
    }

    /**
     * One head.
     *
     * @param blocksFor part of the blocks that hold so much of the mass ("0.99"), on the average
     * @param worst the same in the sample that needs most, of those at least half as long as the longest
     * @param layout names of the patterns that its layout is the union of
     */
    public record AttentionHead(Map<String, Double> blocksFor, Map<String, Double> worst, List<String> layout,
            AttentionCoverage plain, AttentionCoverage drifted) {
    }

    /**
     * The part of the mass that each policy's choice holds, all with as many blocks.
     *
     * @param kept part of the blocks that this is, with those that are kept always
     * @param chooses whether the budget leaves any sample something to choose
     * @param always what the blocks hold that are always kept: the diagonal's, and those of key block 0
     * @param predicted null where a layer has no predictor
     * @param fixed by the means over sample text
     * @param pool by the union of patterns
     * @param bigBird neighbours, and others by lot
     * @param longformer the nearest
     */
    public record AttentionCoverage(double kept, boolean chooses, double always, double oracle, @Nullable Double predicted,
            double fixed, double pool, double bigBird, double longformer, double random) {

        /** How near the predictor comes to what could be had. */
        public double shareOfOracle() {
            return predicted == null ? 0 : predicted / oracle;
        }

        /** The same of what is left to choose: without the blocks that every policy keeps. */
        public double shareOfChoice() {
            return predicted == null ? 0 : oracle - always <= 1e-9 ? 1 : (predicted - always) / (oracle - always);
        }
    }

    /** Of figures that each layer has. */
    public double mean(ToDoubleFunction<Layer> figure) {
        return layers.stream().mapToDouble(figure).average().orElse(0);
    }
}
