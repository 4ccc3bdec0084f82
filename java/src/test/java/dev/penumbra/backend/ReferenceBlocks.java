package dev.penumbra.backend;

import static dev.penumbra.backend.Elements.add;
import static dev.penumbra.backend.Elements.get;
import static dev.penumbra.backend.Elements.getInt;
import static dev.penumbra.backend.Elements.set;

import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.PredictMass;
import dev.penumbra.backend.op.RelativeMass;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import java.util.Comparator;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** Lists of blocks, and what chooses them, straight from their definitions. */
final class ReferenceBlocks {

    private ReferenceBlocks() {
    }

    /**
     * The neuron behind each column of row {@code row} that is read or written; without lists, {@code width} columns that stand
     * for themselves.
     */
    static int[] neurons(@Nullable BlockList blocks, int row, int width) {
        if (blocks == null) {
            return IntStream.range(0, width).toArray();
        }
        int list = Math.toIntExact(row / blocks.rowsPerList());
        int count = getInt(blocks.counts(), list);
        if (count < 0 || count > blocks.capacity()) {
            throw new IllegalStateException(
                    "expected 0 to " + blocks.capacity() + " blocks in list " + list + ", found " + count);
        }
        int[] neurons = new int[count * blocks.size()];
        int before = -1;
        for (int c = 0; c < count; c++) {
            int block = getInt(blocks.indices(), list, c);
            if (block <= before) {
                throw new IllegalStateException(
                        "expected list " + list + " to ascend, found " + block + " after " + before);
            }
            before = block;
            for (int j = 0; j < blocks.size(); j++) {
                neurons[c * blocks.size() + j] = block * blocks.size() + j;
            }
        }
        return neurons;
    }

    static void activationMass(ActivationMass op) {
        Tensor given = op.x() != null ? op.x() : op.reluMask();
        int n = op.x() != null ? size(given, 1) : 8 * size(given, 1);
        int m = size(given, 0);
        int valid = op.validRows() == null ? m : Math.min(getInt(op.validRows(), 0), m);
        double[][] blocks = new double[Math.toIntExact(Math.ceilDiv(m, op.rowsPerList()))][n / op.blockSize()];
        double[] mass = new double[n];
        double[] fired = new double[n];
        for (int i = 0; i < valid; i++) {
            for (int j = 0; j < n; j++) {
                double value = op.x() != null
                        ? Math.max(0, get(op.x(), i, j))
                        : getInt(op.reluMask(), i, j / 8) >> (j % 8) & 1;
                fired[j] += value > 0 ? 1 : 0;
                value *= op.norms() == null ? 1 : get(op.norms(), j);
                mass[j] += value;
                blocks[(int) (i / op.rowsPerList())][j / op.blockSize()] += value;
            }
        }
        if (op.blockMass() != null) {
            Elements.forEach(op.blockMass().shape(),
                    at -> set(op.blockMass(), blocks[(int) at[0]][(int) at[1]], at));
        }
        for (int j = 0; j < n; j++) {
            if (op.neuronMass() != null) {
                add(op.neuronMass(), mass[j], j);
            }
            if (op.neuronFired() != null) {
                add(op.neuronFired(), fired[j], j);
            }
        }
    }

    static void predictMass(PredictMass op) {
        int rank = size(op.a(), 0);
        double[][] scores = new double[size(op.scores(), 0)][size(op.scores(), 1)];
        for (int p = 0; p < size(op.pooled(), 0); p++) {
            double[] z = new double[rank];
            for (int r = 0; r < rank; r++) {
                for (int j = 0; j < size(op.pooled(), 1); j++) {
                    z[r] += get(op.pooled(), p, j) * get(op.a(), r, j);
                }
            }
            for (int unit = 0; unit < size(op.b(), 0); unit++) {
                double value = op.bias() == null ? 0 : get(op.bias(), unit);
                for (int r = 0; r < rank; r++) {
                    value += z[r] * get(op.b(), unit, r);
                }
                double norm = op.norms() == null ? 1 : get(op.norms(), unit);
                scores[(int) (p / op.pooledPerList())][unit / op.unitsPerScore()] += norm * Math.max(0, value);
            }
        }
        Elements.forEach(op.scores().shape(), at -> set(op.scores(), scores[(int) at[0]][(int) at[1]], at));
    }

    static void relativeMass(RelativeMass op) {
        for (int block = 0; block < size(op.scores(), 1); block++) {
            int first = block * op.blockSize();
            double sum = 0;
            float largest = 0;
            for (int j = first; j < first + op.blockSize(); j++) {
                sum += get(op.neuronMass(), j);
                largest = Math.max(largest, (float) get(op.neuronMass(), j));
            }
            int small = 0;
            for (int j = first; j < first + op.blockSize(); j++) {
                small += get(op.neuronMass(), j) < op.threshold() * largest ? 1 : 0;
            }
            set(op.scores(), small >= op.share() * op.blockSize() ? 0 : sum, 0, block);
        }
    }

    /** Sums are f32, in the order of the choice, so that a device that keeps to it chooses the same. */
    static void selectBlocks(SelectBlocks op) {
        int lists = size(op.scores(), 0);
        int blocks = size(op.scores(), 1);
        int capacity = Math.toIntExact(op.blocks().capacity());
        int kept = 0;
        int cut = 0;
        double covered = 0;
        double whole = 0;
        for (int list = 0; list < lists; list++) {
            float[] scores = new float[blocks];
            for (int b = 0; b < blocks; b++) {
                float score = (float) get(op.scores(), list, b);
                scores[b] = score > 0 ? score : 0;
            }
            int[] order = IntStream.range(0, blocks).boxed()
                    .sorted(Comparator.comparing((Integer b) -> -scores[b]).thenComparing(b -> b))
                    .mapToInt(Integer::intValue).filter(b -> scores[b] > 0).toArray();
            float total = 0;
            for (int b : order) {
                total += scores[b];
            }
            int wanted = 0;
            float sum = 0;
            float fits = 0;
            while (wanted < order.length && (op.coverage() == 1 || sum < op.coverage() * total)) {
                sum += scores[order[wanted++]];
                fits = wanted <= capacity ? sum : fits;
            }
            int[] chosen = Arrays.copyOf(order, Math.min(wanted, capacity));
            Arrays.sort(chosen);
            for (int c = 0; c < chosen.length; c++) {
                set(op.blocks().indices(), chosen[c], list, c);
            }
            set(op.blocks().counts(), chosen.length, list);
            kept += chosen.length;
            cut += wanted > capacity ? 1 : 0;
            covered += fits;
            whole += total;
        }
        if (op.summary() != null) {
            set(op.summary(), (double) kept / Math.max(1, lists * blocks), 0);
            set(op.summary(), whole == 0 ? 1 : covered / whole, 1);
            set(op.summary(), (double) cut / Math.max(1, lists), 2);
        }
    }

    private static int size(Tensor tensor, int dim) {
        return Math.toIntExact(tensor.shape().dim(dim));
    }
}
