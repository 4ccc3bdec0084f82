package dev.penumbra.expose;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.sparse.NeuronOrder;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class NeuronClusteringTest {

    /** Teams of neurons that are used by the same groups of tokens lie anywhere; a few groups use each team. */
    @ParameterizedTest
    @CsvSource({"4, 32, 20", "7, 32, 40", "3, 64, 12"})
    void neuronsThatFireTogetherComeTogether(int teams, int blockSize, int groups) {
        Random random = new Random(teams);
        int neurons = teams * blockSize;
        List<Integer> teamOf = new ArrayList<>();
        for (int j = 0; j < neurons; j++) {
            teamOf.add(j % teams);
        }
        Collections.shuffle(teamOf, random);
        List<float[]> use = new ArrayList<>();
        float[] weight = new float[neurons];
        for (int g = 0; g < groups; g++) {
            float[] masses = new float[neurons];
            for (int j = 0; j < neurons; j++) {
                masses[j] = (teamOf.get(j) == g % teams ? 1 : 0.005f) * (0.5f + random.nextFloat());
                weight[j] += masses[j] / groups;
            }
            use.add(masses);
        }
        NeuronClustering clustering = new NeuronClustering(List.of(use), weight, blockSize);
        NeuronOrder clustered = clustering.clustered();
        double together = BlockMasses.of(use, clustered, blockSize).oracle(1);
        double byWeight = BlockMasses.of(use, clustering.byWeight(), blockSize).oracle(1);
        assertThat(together)
                .as("part of a group's mass in one block; by weight %.3f; %d teams of %d", byWeight, teams, blockSize)
                .isGreaterThan(0.9).isGreaterThan(byWeight + 0.2);
    }
}
