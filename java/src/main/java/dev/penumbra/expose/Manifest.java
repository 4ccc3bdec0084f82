package dev.penumbra.expose;

import java.util.List;
import java.util.Map;

/**
 * What a calibration says of itself, in words and figures; the file's metadata has it as JSON.
 *
 * @param version of the file's layout
 * @param model name of the base model's folder
 * @param modelHash {@link dev.penumbra.io.ModelFolder#weightsHash}
 * @param rank of the predictors; of the singular vectors too
 * @param tokens that orders and predictors were made from
 * @param heldOutTokens that figures were measured on
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
        List<Layer> layers) {

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

    /** The part of the mass that each policy's choice covers, all with as many blocks. */
    public record Coverage(double oracle, double predicted, double fixed, double random, double seed, double lowRank) {

        /** How near the predictor comes to what could be had. */
        public double shareOfOracle() {
            return predicted / oracle;
        }
    }

    /** Of figures that each layer has. */
    public double mean(java.util.function.ToDoubleFunction<Layer> figure) {
        return layers.stream().mapToDouble(figure).average().orElse(0);
    }
}
