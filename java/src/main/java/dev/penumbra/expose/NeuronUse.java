package dev.penumbra.expose;

import java.util.ArrayList;
import java.util.List;

/**
 * How a layer's neurons were used: for each group of neighbouring tokens, what each neuron weighed and how often it fired.
 * Neurons are in their original places.
 */
final class NeuronUse {

    private final float[] gradientNorms;
    /** [groups][neurons]: the sum over the group's tokens of activation · ||fc2[:, j]||. */
    private final List<float[]> masses = new ArrayList<>();
    /** [groups][neurons]: tokens. */
    private final List<float[]> fired = new ArrayList<>();
    private final List<Integer> batches = new ArrayList<>();
    private long tokens;

    /** @param gradientNorms [neurons]: ||fc1[j, :]|| · ||fc2[:, j]|| */
    NeuronUse(float[] gradientNorms) {
        this.gradientNorms = gradientNorms;
    }

    /** @param batch the batch that the group is of; ascends */
    void add(int batch, int groupTokens, float[] mass, float[] fires) {
        masses.add(mass);
        fired.add(fires);
        batches.add(batch);
        tokens += groupTokens;
    }

    int neurons() {
        return gradientNorms.length;
    }

    long tokens() {
        return tokens;
    }

    List<float[]> masses() {
        return masses;
    }

    /** What dropping a neuron may change in its layer's input gradient: how often it fires, times the norms of its weights. */
    List<float[]> gradientMasses() {
        return fired.stream().map(fires -> {
            float[] mass = new float[fires.length];
            for (int j = 0; j < mass.length; j++) {
                mass[j] = fires[j] * gradientNorms[j];
            }
            return mass;
        }).toList();
    }

    /** The batch that each group is of. */
    int[] batchOf() {
        return batches.stream().mapToInt(Integer::intValue).toArray();
    }

    /** [neurons]: mean over all tokens. */
    float[] meanMass() {
        return mean(masses);
    }

    /** [neurons]: the part of the tokens for which a neuron fires. */
    float[] meanFired() {
        return mean(fired);
    }

    private float[] mean(List<float[]> groups) {
        double[] sums = new double[neurons()];
        for (float[] group : groups) {
            for (int j = 0; j < sums.length; j++) {
                sums[j] += group[j];
            }
        }
        float[] means = new float[sums.length];
        for (int j = 0; j < means.length; j++) {
            means[j] = (float) (sums[j] / Math.max(1, tokens));
        }
        return means;
    }
}
