package dev.penumbra.expose;

import dev.penumbra.predict.Matrix;
import java.util.ArrayList;
import java.util.List;

/** What a predictor of one layer sees, and what it should answer: pooled rows, in whole lists. */
final class PooledUse {

    private final int poolsPerList;
    private final List<float[]> inputs = new ArrayList<>();
    private final List<float[]> masses = new ArrayList<>();
    private final List<Integer> batches = new ArrayList<>();

    PooledUse(int poolsPerList) {
        this.poolsPerList = poolsPerList;
    }

    /**
     * Adds whole lists of a batch.
     *
     * @param input [pools, hidden]
     * @param mass [pools, blocks]
     */
    void add(int batch, int lists, float[] input, float[] mass) {
        if (lists > 0) {
            inputs.add(input);
            masses.add(mass);
            for (int i = 0; i < lists; i++) {
                batches.add(batch);
            }
        }
    }

    int lists() {
        return batches.size();
    }

    int poolsPerList() {
        return poolsPerList;
    }

    Matrix inputs() {
        return joined(inputs);
    }

    /** [pools, blocks]. */
    Matrix masses() {
        return joined(masses);
    }

    private Matrix joined(List<float[]> parts) {
        int rows = lists() * poolsPerList;
        int total = parts.stream().mapToInt(part -> part.length).sum();
        float[] values = new float[total];
        int at = 0;
        for (float[] part : parts) {
            System.arraycopy(part, 0, values, at, part.length);
            at += part.length;
        }
        return new Matrix(rows, total / Math.max(1, rows), values);
    }

    /** Each list's blocks. */
    BlockMasses byList() {
        Matrix pools = masses();
        Matrix lists = Matrix.zeros(lists(), pools.columns());
        for (int p = 0; p < pools.rows(); p++) {
            for (int b = 0; b < pools.columns(); b++) {
                lists.values()[p / poolsPerList * pools.columns() + b] += pools.get(p, b);
            }
        }
        return new BlockMasses(lists);
    }

    int[] batchOf() {
        return batches.stream().mapToInt(Integer::intValue).toArray();
    }

    /** Of a batch's lists, those of batches with this parity. */
    PooledUse half(int parity) {
        PooledUse half = new PooledUse(poolsPerList);
        int list = 0;
        for (int part = 0; part < inputs.size(); part++) {
            int batch = batches.get(list);
            int lists = 0;
            while (list < batches.size() && batches.get(list) == batch) {
                list++;
                lists++;
            }
            if (batch % 2 == parity) {
                half.add(batch, lists, inputs.get(part), masses.get(part));
            }
        }
        return half;
    }
}
