package dev.penumbra.expose;

import dev.penumbra.sparse.NeuronOrder;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** How much of its mass a list covers with so many blocks, as {@link Calibration} keeps it. */
final class Curves {

    /** One list in twenty may need more. */
    private static final double FEWEST = 0.05;

    private Curves() {
    }

    /** For each block size, [pass, scope, mean and low, blocks]. */
    static Map<Integer, float[]> of(NeuronUse held, NeuronOrder order, int smallest) {
        Map<Integer, float[]> curves = new TreeMap<>();
        for (int size : Calibration.blockSizes(smallest, order.neurons())) {
            int blocks = order.neurons() / size;
            float[] all = new float[2 * 2 * 2 * blocks];
            int at = 0;
            // In the order of the passes' and scopes' constants.
            for (List<float[]> masses : List.of(held.masses(), held.gradientMasses())) {
                BlockMasses lists = BlockMasses.of(masses, order, size);
                for (BlockMasses scope : List.of(lists, lists.merged(held.batchOf()))) {
                    BlockMasses.Curve curve = scope.curve(FEWEST);
                    System.arraycopy(curve.mean(), 0, all, at, blocks);
                    System.arraycopy(curve.low(), 0, all, at + blocks, blocks);
                    at += 2 * blocks;
                }
            }
            curves.put(size, all);
        }
        return curves;
    }
}
