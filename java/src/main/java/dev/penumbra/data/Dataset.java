package dev.penumbra.data;

import dev.penumbra.internal.Counted;
import java.util.List;

/** Samples by index, and where each came from. */
public interface Dataset {

    int size();

    Sample get(int index);

    /** Where a sample came from, for messages: "train.jsonl line 12". */
    String describe(int index);

    /** Samples in memory. */
    static Dataset of(List<Sample> samples) {
        List<Sample> kept = List.copyOf(samples);
        return new Dataset() {
            @Override
            public int size() {
                return kept.size();
            }

            @Override
            public Sample get(int index) {
                return kept.get(index);
            }

            @Override
            public String describe(int index) {
                return "sample " + index;
            }

            @Override
            public String toString() {
                return Counted.of(kept.size(), "sample");
            }
        };
    }
}
