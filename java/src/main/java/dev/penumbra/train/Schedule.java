package dev.penumbra.train;

/** Learning-rate schedules with warm-up, as transformers computes them. */
public enum Schedule {
    CONSTANT, LINEAR, COSINE;

    /** What the learning rate is multiplied by in a step, counted from 0, of {@code total} steps. */
    public double factor(int step, int warmup, int total) {
        if (step < warmup) {
            return (double) step / Math.max(1, warmup);
        }
        double rest = Math.max(1, total - warmup);
        return switch (this) {
            case CONSTANT -> 1;
            case LINEAR -> Math.max(0, (total - step) / rest);
            case COSINE -> Math.max(0, 0.5 * (1 + Math.cos(Math.PI * (step - warmup) / rest)));
        };
    }
}
