package dev.penumbra.lora;

import java.util.Collections;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;

/**
 * What a LoRA adapter is, apart from its numbers; the words are PEFT's.
 *
 * @param r the rank, 1 or more
 * @param loraAlpha the numerator of the scaling
 * @param loraDropout the chance that an element of a module's input is dropped on the adapter's way, in [0, 1)
 * @param targetModules names of the linear layers that are adapted, for example q_proj and v_proj
 * @param useRslora scale by alpha / sqrt(r) instead of alpha / r
 */
public record LoraConfig(int r, double loraAlpha, double loraDropout, Set<String> targetModules, boolean useRslora) {

    /** The linear layers of an OPT decoder layer, in the order of the forward pass. */
    public static final List<String> OPT_TARGETS = List.of("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2");

    /** @throws IllegalArgumentException naming the value that is out of its range, or the targets that OPT has not */
    public LoraConfig {
        if (r < 1) {
            throw new IllegalArgumentException("expected a LoRA rank r of 1 or more, found " + r);
        }
        if (!(loraAlpha > 0 && loraAlpha <= Float.MAX_VALUE)) {
            throw new IllegalArgumentException("expected a positive lora_alpha that an f32 holds, found " + loraAlpha);
        }
        if (!(loraDropout >= 0 && loraDropout < 1)) {
            throw new IllegalArgumentException("expected lora_dropout in [0, 1), found " + loraDropout);
        }
        if (targetModules.isEmpty()) {
            throw new IllegalArgumentException("expected target modules, found none; OPT has " + OPT_TARGETS);
        }
        List<String> unknown = targetModules.stream().filter(target -> !OPT_TARGETS.contains(target)).sorted().toList();
        if (!unknown.isEmpty()) {
            throw new IllegalArgumentException("expected target modules among " + OPT_TARGETS + ", found " + unknown);
        }
        Set<String> ordered = new LinkedHashSet<>(OPT_TARGETS);
        ordered.retainAll(targetModules);
        targetModules = Collections.unmodifiableSet(ordered);
    }

    /** Rank {@code r}, alpha {@code 2 r}, no dropout, on q_proj and v_proj: PEFT's targets for OPT. */
    public static LoraConfig ofRank(int r) {
        return new LoraConfig(r, 2.0 * r, 0, Set.of("q_proj", "v_proj"), false);
    }

    public LoraConfig withTargets(String... names) {
        return new LoraConfig(r, loraAlpha, loraDropout, Set.of(names), useRslora);
    }

    /** What B · A is multiplied by: alpha / r, or alpha / sqrt(r). */
    public double scaling() {
        return loraAlpha / (useRslora ? Math.sqrt(r) : r);
    }
}
