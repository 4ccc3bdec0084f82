package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.data.RestaurantGenerator.Pair;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import org.junit.jupiter.api.Test;

class RestaurantGeneratorTest {

    @Test
    void aSeedGivesTheSamePairsAndManyOfThem() {
        List<Pair> pairs = new RestaurantGenerator(7).pairs(4000);
        assertThat(new RestaurantGenerator(7).pairs(4000)).isEqualTo(pairs);
        assertThat(new RestaurantGenerator(8).pairs(4000)).isNotEqualTo(pairs);
        assertThat(new HashSet<>(pairs)).hasSizeGreaterThan(3900);
    }

    @Test
    void heldOutCombinationsAreNeverTrainedOn() {
        Set<String> trained = combinations(new RestaurantGenerator(1).pairs(5000, false));
        Set<String> heldOut = combinations(new RestaurantGenerator(2).pairs(1000, true));
        assertThat(heldOut).hasSizeGreaterThan(20).doesNotContainAnyElementsOf(trained);
    }

    private static Set<String> combinations(List<Pair> pairs) {
        Set<String> combinations = new HashSet<>();
        for (Pair pair : pairs) {
            combinations.add(pair.prompt().strip().replaceAll("( \\| price: \\w+).*", "$1"));
        }
        return combinations;
    }
}
