package dev.penumbra.expose;

import dev.penumbra.predict.Matrix;
import dev.penumbra.sparse.NeuronOrder;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;

/**
 * Gathers neurons that are used by the same tokens into blocks of equal size: k-means with as many means as there are blocks,
 * each with room for one block.
 *
 * <p>A neuron is described by the square roots of its masses in groups of tokens: a block whose neurons are near one another
 * by that is heavy as a whole or light as a whole, whatever the tokens. Without the root, few heavy neurons would decide.
 */
final class NeuronClustering {

    /** Groups of tokens that describe a neuron: more tell little more, and time grows with them. */
    private static final int MOST_GROUPS = 192;
    /** The means hardly move after these. */
    private static final int ITERATIONS = 10;

    private final int neurons;
    private final int blockSize;
    private final int blocks;
    private final Matrix signatures;
    private final float[] weight;

    /**
     * @param use descriptions of neurons, [groups][neurons] each: of activations, of gradients
     * @param weight [neurons]: blocks, and neurons within a block, are put in falling order of it
     */
    NeuronClustering(List<List<float[]>> use, float[] weight, int blockSize) {
        this.weight = weight;
        this.blockSize = blockSize;
        neurons = weight.length;
        blocks = neurons / blockSize;
        signatures = signatures(use);
    }

    private Matrix signatures(List<List<float[]>> use) {
        List<Matrix> parts = use.stream().map(this::signature).toList();
        int width = parts.stream().mapToInt(Matrix::columns).sum();
        Matrix joined = Matrix.zeros(neurons, width);
        int at = 0;
        for (Matrix part : parts) {
            for (int j = 0; j < neurons; j++) {
                System.arraycopy(part.values(), j * part.columns(), joined.values(), j * width + at, part.columns());
            }
            at += part.columns();
        }
        return joined;
    }

    /** [neurons, groups], scaled to a mean square of 1; where there are many groups, neighbours are added up. */
    private Matrix signature(List<float[]> groups) {
        int width = Math.min(MOST_GROUPS, groups.size());
        Matrix result = Matrix.zeros(neurons, width);
        for (int g = 0; g < groups.size(); g++) {
            int column = (int) ((long) g * width / groups.size());
            float[] group = groups.get(g);
            for (int j = 0; j < neurons; j++) {
                result.values()[j * width + column] += group[j];
            }
        }
        double sum = 0;
        for (float value : result.values()) {
            sum += value;
        }
        float scale = (float) (result.values().length / Math.max(sum, Double.MIN_NORMAL));
        for (int i = 0; i < result.values().length; i++) {
            result.values()[i] = (float) Math.sqrt(result.values()[i] * scale);
        }
        return result;
    }

    /** By falling weight. */
    NeuronOrder byWeight() {
        return new NeuronOrder(IntStream.range(0, neurons).boxed()
                .sorted(Comparator.comparingDouble((Integer j) -> -weight[j]))
                .mapToInt(Integer::intValue).toArray());
    }

    /** Clustered, beginning with the blocks of {@link #byWeight}. */
    NeuronOrder clustered() {
        int[] blockOf = new int[neurons];
        int[] start = byWeight().toArray();
        for (int place = 0; place < neurons; place++) {
            blockOf[start[place]] = place / blockSize;
        }
        for (int i = 0; i < ITERATIONS; i++) {
            int[] next = assign(means(blockOf));
            if (Arrays.equals(next, blockOf)) {
                break;
            }
            blockOf = next;
        }
        return order(blockOf);
    }

    /** Transposed, [width, blocks], so that distances to all means are computed beside one another. */
    private Matrix means(int[] blockOf) {
        int width = signatures.columns();
        Matrix means = Matrix.zeros(width, blocks);
        for (int j = 0; j < neurons; j++) {
            for (int d = 0; d < width; d++) {
                means.values()[d * blocks + blockOf[j]] += signatures.get(j, d) / blockSize;
            }
        }
        return means;
    }

    /** The neurons that would lose most by another block choose first; each takes the nearest that has room. */
    private int[] assign(Matrix means) {
        float[] squares = new float[blocks];
        for (int d = 0; d < means.rows(); d++) {
            for (int b = 0; b < blocks; b++) {
                squares[b] += means.get(d, b) * means.get(d, b);
            }
        }
        float[][] distances = new float[neurons][];
        double[] regret = new double[neurons];
        IntStream.range(0, neurons).parallel().forEach(j -> {
            // Without the neuron's own square, which is the same for all means.
            float[] to = squares.clone();
            for (int d = 0; d < means.rows(); d++) {
                float factor = -2 * signatures.get(j, d);
                for (int b = 0; b < blocks; b++) {
                    to[b] += factor * means.values()[d * blocks + b];
                }
            }
            float best = Float.MAX_VALUE;
            float second = Float.MAX_VALUE;
            for (float distance : to) {
                if (distance < best) {
                    second = best;
                    best = distance;
                } else if (distance < second) {
                    second = distance;
                }
            }
            distances[j] = to;
            regret[j] = blocks == 1 ? 0 : second - (double) best;
        });
        int[] room = new int[blocks];
        Arrays.fill(room, blockSize);
        int[] blockOf = new int[neurons];
        int[] sequence = IntStream.range(0, neurons).boxed()
                .sorted(Comparator.comparingDouble((Integer j) -> -regret[j])).mapToInt(Integer::intValue).toArray();
        for (int j : sequence) {
            int nearest = -1;
            for (int b = 0; b < blocks; b++) {
                if (room[b] > 0 && (nearest < 0 || distances[j][b] < distances[j][nearest])) {
                    nearest = b;
                }
            }
            blockOf[j] = nearest;
            room[nearest]--;
        }
        return blockOf;
    }

    /** Heavy blocks first: those of 64 and 128, which are neighbours joined, then join what is alike. */
    private NeuronOrder order(int[] blockOf) {
        double[] blockWeight = new double[blocks];
        for (int j = 0; j < neurons; j++) {
            blockWeight[blockOf[j]] += weight[j];
        }
        return new NeuronOrder(IntStream.range(0, neurons).boxed()
                .sorted(Comparator.<Integer>comparingDouble(j -> -blockWeight[blockOf[j]])
                        .thenComparingInt(j -> blockOf[j])
                        .thenComparingDouble(j -> -weight[j]))
                .mapToInt(Integer::intValue).toArray());
    }
}
