package dev.penumbra.model;

import static dev.penumbra.model.AdapterTerms.FC1;
import static dev.penumbra.model.AdapterTerms.OUT;
import static dev.penumbra.model.AdapterTerms.QKV;

import java.util.List;
import java.util.function.IntPredicate;

/**
 * How far down gradients flow: what lies in a layer has one if an adapter needs it there, or further down.
 *
 * @param lowest first layer with an adapter that is trained; one past the last where none is
 */
record GradientReach(AdapterTerms adapters, int lowest) {

    boolean reachesInput(int layer) {
        return layer > lowest;
    }

    /** Whether a layer's queries, keys and values have a gradient. */
    boolean reachesQkv(int layer) {
        return reachesInput(layer) || adapters.has(layer, QKV);
    }

    /** Whether a layer's keys have a gradient that anybody reads. */
    boolean reachesKeys(int layer) {
        return reachesInput(layer) || adapters.has(layer, List.of("k_proj"));
    }

    /** Whether what a layer's attention sublayer gives has a gradient: it is what the MLP's begins with. */
    boolean reachesAttention(int layer) {
        return reachesQkv(layer) || adapters.has(layer, OUT);
    }

    /** Whether the output of a layer's fc1 has a gradient. */
    boolean reachesFc1(int layer) {
        return reachesAttention(layer) || adapters.has(layer, FC1);
    }

    /** The first layer where {@code reaches} holds; one past the last, or more, where it holds in none. */
    int first(IntPredicate reaches) {
        return reaches.test(lowest) ? lowest : lowest + 1;
    }
}
