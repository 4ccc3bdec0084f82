package dev.penumbra.expose;

import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.LanguageModel;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;

/** An adapter that moves a model as far as training would, in random directions. */
final class Drift {

    private static final LoraConfig LORA = LoraConfig.ofRank(8);

    private final LoraAdapter adapter;
    private final SplittableRandom random;
    private final double largest;
    private final float[] initial;
    /** For each site, the standard deviation of B's elements with which the adapter is as large as the weight. */
    private final List<Double> unit = new ArrayList<>();

    private Drift(LoraAdapter adapter, double largest, long seed) {
        this.adapter = adapter;
        this.largest = largest;
        random = new SplittableRandom(seed);
        initial = adapter.parametersToHost();
    }

    /** @param largest size of the change, as a part of the weight's */
    static Drift create(Arena owner, LanguageModel model, ModelFolder folder, double largest, long seed) throws IOException {
        LoraAdapter adapter = LoraAdapter.create(model.backend(), owner, LORA, model.adaptableLayers(), model.peftPrefix(),
                seed);
        Drift drift = new Drift(adapter, largest, seed);
        String prefix = folder.decoderPrefix();
        for (Site site : adapter.sites()) {
            String name = prefix + site.layer().name() + ".weight";
            double weight = norm(folder.tensor(name, site.layer().out(), site.layer().in()).toFloats());
            folder.release(name);
            // ||B A|| with elements of B of deviation 1 is about sqrt(out) · ||A||.
            double a = 0;
            for (int i = 0; i < site.r() * site.layer().in(); i++) {
                double value = drift.initial[Math.toIntExact(site.offsetA()) + i];
                a += value * value;
            }
            drift.unit.add(weight / (LORA.scaling() * Math.sqrt(site.layer().out() * a)));
        }
        return drift;
    }

    private static double norm(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += (double) value * value;
        }
        return Math.sqrt(sum);
    }

    LoraAdapter adapter() {
        return adapter;
    }

    /** The adapter changes nothing. */
    void none() {
        adapter.setParameters(initial);
    }

    /** Another adapter, of a size drawn between none and the largest. */
    void draw() {
        double size = largest * random.nextDouble();
        float[] values = initial.clone();
        for (Site site : adapter.sites()) {
            double deviation = size * unit.get(site.index());
            int from = Math.toIntExact(site.offsetB());
            for (int i = 0; i < site.layer().out() * site.r(); i++) {
                values[from + i] = (float) (deviation * random.nextGaussian());
            }
        }
        adapter.setParameters(values);
    }
}
