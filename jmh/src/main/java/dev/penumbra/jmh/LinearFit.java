package dev.penumbra.jmh;

import java.util.List;

/**
 * The line y = intercept + slope · x that least squares lays through points.
 *
 * @param r2 the share of y's variance that the line explains: 1 when every point lies on it
 */
record LinearFit(double intercept, double slope, double r2) {

    /** @param points at least two, of different x: {x, y} each */
    static LinearFit through(List<double[]> points) {
        double meanX = points.stream().mapToDouble(p -> p[0]).average().orElseThrow();
        double meanY = points.stream().mapToDouble(p -> p[1]).average().orElseThrow();
        double sxx = points.stream().mapToDouble(p -> (p[0] - meanX) * (p[0] - meanX)).sum();
        double sxy = points.stream().mapToDouble(p -> (p[0] - meanX) * (p[1] - meanY)).sum();
        double syy = points.stream().mapToDouble(p -> (p[1] - meanY) * (p[1] - meanY)).sum();
        if (sxx == 0) {
            throw new IllegalArgumentException("expected points of different x, found only " + meanX);
        }
        double slope = sxy / sxx;
        return new LinearFit(meanY - slope * meanX, slope, syy == 0 ? 1 : sxy * sxy / (sxx * syy));
    }
}
