package dev.penumbra.train;

import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.KeyValueCache;
import dev.penumbra.model.LanguageModel;
import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;

/** Continues a prompt token by token. */
public final class Generator {

    private final LanguageModel model;
    private final @Nullable LoraAdapter adapter;
    private final int eosId;

    /** @param eosId ends a text; -1: none does */
    public Generator(LanguageModel model, @Nullable LoraAdapter adapter, int eosId) {
        this.model = model;
        this.adapter = adapter;
        this.eosId = eosId;
    }

    /**
     * Returns the new tokens, without the end token: fewer than were asked for where the text ends, or the model's positions do.
     *
     * @param prompt tokens, one or more, as many as the model has positions at most
     * @param maxNewTokens 0 or more
     * @param temperature what logits are divided by before a token is drawn; 0: always the likeliest token, the lowest id among equals
     * @param topP draws among the likeliest tokens whose chances sum to this much, in (0, 1]
     * @param seed of what is drawn; equal ones draw equal tokens
     * @throws IllegalArgumentException naming the value that is out of its range
     */
    public int[] generate(int[] prompt, int maxNewTokens, double temperature, double topP, long seed) {
        require(prompt.length > 0, "a prompt of 1 token or more", prompt.length);
        require(prompt.length <= model.maxPositions(),
                "a prompt of at most " + model.maxPositions() + " tokens, the model's positions", prompt.length);
        require(maxNewTokens >= 0, "a length of 0 or more", maxNewTokens);
        require(temperature >= 0, "a temperature of 0 or more", temperature);
        require(topP > 0 && topP <= 1, "a top-p above 0, at most 1", topP);
        int capacity = Math.toIntExact(Math.min(model.maxPositions(), (long) prompt.length + maxNewTokens));
        // What the last position says is no longer fed.
        int[] made = new int[Math.min(maxNewTokens, capacity - prompt.length + 1)];
        int count = 0;
        SplittableRandom random = new SplittableRandom(seed);
        try (Arena arena = Arena.ofShared()) {
            KeyValueCache cache = model.openCache(arena, adapter, capacity);
            int[] fed = prompt;
            while (count < maxNewTokens && cache.length() + fed.length <= capacity) {
                int token = choose(cache.feed(fed), temperature, topP, random);
                if (token == eosId) {
                    break;
                }
                made[count++] = token;
                fed = new int[]{token};
            }
        }
        return Arrays.copyOf(made, count);
    }

    private static void require(boolean holds, String expected, Object found) {
        if (!holds) {
            throw new IllegalArgumentException("expected " + expected + ", found " + found);
        }
    }

    private static int choose(float[] logits, double temperature, double topP, SplittableRandom random) {
        int best = 0;
        for (int i = 1; i < logits.length; i++) {
            if (logits[i] > logits[best]) {
                best = i;
            }
        }
        if (temperature == 0) {
            return best;
        }
        double[] weights = new double[logits.length];
        double sum = 0;
        for (int i = 0; i < logits.length; i++) {
            weights[i] = Math.exp((logits[i] - (double) logits[best]) / temperature);
            sum += weights[i];
        }
        Integer[] order = new Integer[logits.length];
        Arrays.setAll(order, i -> i);
        Arrays.sort(order, (left, right) -> Double.compare(weights[right], weights[left]));
        double kept = 0;
        int last = 0;
        while (last < order.length && kept < topP * sum) {
            kept += weights[order[last++]];
        }
        double drawn = random.nextDouble() * kept;
        for (int i = 0; i < last; i++) {
            drawn -= weights[order[i]];
            if (drawn < 0) {
                return order[i];
            }
        }
        return order[0];
    }
}
