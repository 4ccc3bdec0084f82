package dev.penumbra.model;

/**
 * How large the weights of each of an MLP's neurons are, by the neurons' places.
 *
 * @param fc1 ||fc1[j, :]||: its row
 * @param fc2 ||fc2[:, j]||: its column
 */
@SuppressWarnings("ArrayRecordComponent")
public record NeuronNorms(float[] fc1, float[] fc2) {

    /** ||fc1[j, :]|| · ||fc2[:, j]||: the largest part of an MLP's derivative that a neuron can have. */
    public float[] product() {
        float[] product = new float[fc1.length];
        for (int j = 0; j < product.length; j++) {
            product[j] = fc1[j] * fc2[j];
        }
        return product;
    }
}
