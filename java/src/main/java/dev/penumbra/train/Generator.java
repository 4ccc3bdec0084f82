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
     * Returns the new tokens, without the end token.
     *
     * @param temperature 0: always the likeliest token, the lowest id among equals
     * @param topP draws among the likeliest tokens whose chances sum to this much, in (0, 1]
     */
    public int[] generate(int[] prompt, int maxNewTokens, double temperature, double topP, long seed) {
        if (prompt.length == 0 || maxNewTokens < 0 || !(temperature >= 0) || !(topP > 0 && topP <= 1)) {
            throw new IllegalArgumentException(
                    "expected a prompt, a length of 0 or more, a temperature of 0 or more and top-p in (0, 1], found "
                            + prompt.length + " tokens, " + maxNewTokens + ", " + temperature + ", " + topP);
        }
        if (prompt.length > model.maxPositions()) {
            throw new IllegalArgumentException("expected a prompt of at most " + model.maxPositions()
                    + " tokens, the model's positions, found " + prompt.length);
        }
        int[] made = new int[maxNewTokens];
        int count = 0;
        SplittableRandom random = new SplittableRandom(seed);
        int capacity = Math.min(model.maxPositions(), Math.addExact(prompt.length, maxNewTokens));
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
