package dev.penumbra.predict;

/** Adam (Kingma and Ba, 2014) over one array of parameters, moments in f64. */
final class Adam {

    private static final double BETA1 = 0.9;
    private static final double BETA2 = 0.999;
    private static final double EPSILON = 1e-12;

    private final float[] parameters;
    private final double rate;
    private final double[] m;
    private final double[] v;

    Adam(float[] parameters, double rate) {
        this.parameters = parameters;
        this.rate = rate;
        m = new double[parameters.length];
        v = new double[parameters.length];
    }

    /**
     * Moves the parameters.
     *
     * @param factor of the rate
     * @param step from 1
     */
    void update(float[] gradient, double factor, int step) {
        double correction1 = 1 - Math.pow(BETA1, step);
        double correction2 = 1 - Math.pow(BETA2, step);
        for (int i = 0; i < parameters.length; i++) {
            double g = gradient[i];
            m[i] = BETA1 * m[i] + (1 - BETA1) * g;
            v[i] = BETA2 * v[i] + (1 - BETA2) * g * g;
            parameters[i] -= (float) (factor * rate * (m[i] / correction1) / (Math.sqrt(v[i] / correction2) + EPSILON));
        }
    }
}
