package dev.penumbra.backend;

import static dev.penumbra.backend.Elements.add;
import static dev.penumbra.backend.Elements.get;
import static dev.penumbra.backend.Elements.getInt;
import static dev.penumbra.backend.Elements.set;

import dev.penumbra.backend.op.AdamW;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Dropout;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNorm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/** Every operation straight from its formula: loops in double, one rounding where a result is stored. */
final class ReferenceOps {

    private ReferenceOps() {
    }

    static void fill(Fill op) {
        Elements.forEach(op.d().shape(), index -> set(op.d(), op.value(), index));
    }

    static void convert(Convert op) {
        Elements.forEach(op.s().shape(), index -> set(op.d(), get(op.s(), index), index));
    }

    static void gemm(Gemm op) {
        FakeBackend.Weight weight = (FakeBackend.Weight) op.weight();
        boolean forward = op.use() == FrozenWeight.Use.FORWARD;
        BlockList sdd = forward ? op.blocks() : null;
        BlockList dsd = forward ? null : op.blocks();
        for (int i = 0; i < size(op.a(), 0); i++) {
            // What a column of d, and of a, stands for: itself, or a listed neuron where it is compact.
            int[] columns = ReferenceBlocks.neurons(sdd, i, size(op.d(), 1));
            int[] inner = ReferenceBlocks.neurons(dsd, i, size(op.a(), 1));
            double[] row = new double[columns.length];
            for (int c = 0; c < columns.length; c++) {
                int j = columns[c];
                row[c] = op.bias() == null ? 0 : get(op.bias(), j);
                for (int l = 0; l < inner.length; l++) {
                    int k = inner[l];
                    double b = weight == null ? get(op.b(), k, j) : forward ? weight.values()[j][k] : weight.values()[k][j];
                    row[c] += get(op.a(), i, l) * b;
                }
            }
            for (LowRank term : op.lowRank()) {
                addLowRank(term, row, columns, i);
            }
            boolean compactMask = sdd != null && op.reluMask() != null
                    && size(op.reluMask(), 1) < weight.values().length / 8;
            epilogue(op, row, compactMask ? ReferenceBlocks.neurons(null, i, columns.length) : columns, i);
            for (int c = 0; c < columns.length; c++) {
                set(op.d(), row[c] + (op.residual() == null ? 0 : get(op.residual(), i, c)), i, c);
            }
        }
    }

    private static void addLowRank(LowRank term, double[] row, int[] columns, int i) {
        int width = size(term.b(), 0);
        for (int c = 0; c < columns.length; c++) {
            long j = columns[c] - term.column();
            if (j < 0 || j >= width) {
                continue;
            }
            double sum = 0;
            for (int r = 0; r < size(term.h(), 1); r++) {
                sum += get(term.h(), i, r) * get(term.b(), j, r);
            }
            row[c] += term.scale() * ReferencePhilox.factor(term.dropout(), (long) i * width + j) * sum;
        }
    }

    private static void epilogue(Gemm op, double[] row, int[] places, int i) {
        for (int c = 0; c < places.length; c++) {
            int j = places[c];
            switch (op.epilogue()) {
                case NONE -> {
                }
                case RELU -> {
                    boolean on = row[c] > 0;
                    row[c] = on ? row[c] : 0;
                    if (op.reluMask() != null) {
                        int bits = getInt(op.reluMask(), i, j / 8) & ~(1 << (j % 8));
                        set(op.reluMask(), bits | (on ? 1 << (j % 8) : 0), i, j / 8);
                    }
                }
                case DRELU -> {
                    boolean on = (getInt(op.reluMask(), i, j / 8) >> (j % 8) & 1) != 0;
                    row[c] = on ? row[c] : 0;
                }
            }
        }
    }

    static void loraProject(LoraProject op) {
        int in = size(op.a(), 1);
        for (int i = 0; i < size(op.x(), 0); i++) {
            double[] x = row(op.x(), op.xBlocks(), in, op.dropout(), i);
            for (int r = 0; r < size(op.a(), 0); r++) {
                double sum = 0;
                for (int j = 0; j < in; j++) {
                    sum += x[j] * get(op.a(), r, j);
                }
                set(op.h(), sum, i, r);
            }
        }
        if (op.next() != null) {
            loraProject(op.next());
        }
    }

    static void loraGradients(LoraGradients op) {
        int rank = size(op.a(), 0);
        int in = size(op.a(), 1);
        int out = size(op.b(), 0);
        double[][] da = new double[rank][in];
        double[][] db = new double[out][rank];
        for (int i = 0; i < size(op.x(), 0); i++) {
            double[] x = op.norm() == null
                    ? row(op.x(), op.xBlocks(), in, op.dropout(), i)
                    : normedRow(op.x(), op.norm(), op.dropout(), i);
            double[] dy = row(op.dy(), op.dyBlocks(), out, null, i);
            for (int r = 0; r < rank; r++) {
                double sum = 0;
                for (int o = 0; o < out; o++) {
                    sum += op.scaling() * dy[o] * get(op.b(), o, r);
                    db[o][r] += op.scaling() * dy[o] * get(op.h(), i, r);
                }
                set(op.dh(), sum, i, r);
                for (int j = 0; j < in; j++) {
                    da[r][j] += sum * x[j];
                }
            }
        }
        for (int r = 0; r < rank; r++) {
            for (int j = 0; j < in; j++) {
                add(op.da(), da[r][j], r, j);
            }
            for (int o = 0; o < out; o++) {
                add(op.db(), db[o][r], o, r);
            }
        }
        if (op.next() != null) {
            loraGradients(op.next());
        }
    }

    /** Row i of t as wide as it is without lists, with dropout; neurons that are not listed are 0. */
    private static double[] row(Tensor t, @Nullable BlockList blocks, int width, @Nullable Dropout dropout, int i) {
        double[] values = new double[width];
        int[] columns = ReferenceBlocks.neurons(blocks, i, width);
        for (int c = 0; c < columns.length; c++) {
            values[columns[c]] = get(t, i, c) * ReferencePhilox.factor(dropout, (long) i * width + columns[c]);
        }
        return values;
    }

    private static double[] normedRow(Tensor x, LayerNorm norm, @Nullable Dropout dropout, int i) {
        int width = size(x, 1);
        double[] values = new double[width];
        for (int j = 0; j < width; j++) {
            double y = (get(x, i, j) - get(norm.mean(), i)) * get(norm.rstd(), i) * get(norm.gamma(), j)
                    + get(norm.beta(), j);
            values[j] = y * ReferencePhilox.factor(dropout, (long) i * width + j);
        }
        return values;
    }

    static void layerNormForward(LayerNormForward op) {
        int h = size(op.x(), 1);
        int m = size(op.x(), 0);
        double[][] y = new double[m][h];
        for (int i = 0; i < m; i++) {
            double mean = 0;
            for (int j = 0; j < h; j++) {
                mean += get(op.x(), i, j) / h;
            }
            double variance = 0;
            for (int j = 0; j < h; j++) {
                variance += Math.pow(get(op.x(), i, j) - mean, 2) / h;
            }
            double rstd = 1 / Math.sqrt(variance + op.epsilon());
            for (int j = 0; j < h; j++) {
                y[i][j] = (get(op.x(), i, j) - mean) * rstd * get(op.gamma(), j) + get(op.beta(), j);
                set(op.y(), y[i][j], i, j);
            }
            if (op.mean() != null && op.rstd() != null) {
                set(op.mean(), mean, i);
                set(op.rstd(), rstd, i);
            }
        }
        if (op.pooling() != null) {
            pool(y, op.pooling());
        }
        if (op.project() != null) {
            loraProject(op.project());
        }
    }

    private static void pool(double[][] y, LayerNormForward.Pooling pooling) {
        int valid = pooling.validRows() == null ? y.length : Math.min(getInt(pooling.validRows(), 0), y.length);
        for (int p = 0; p < size(pooling.pooled(), 0); p++) {
            int from = p * pooling.rows();
            int to = Math.min(from + pooling.rows(), valid);
            for (int j = 0; j < size(pooling.pooled(), 1); j++) {
                double sum = 0;
                for (int i = from; i < to; i++) {
                    sum += y[i][j] / (to - from);
                }
                set(pooling.pooled(), sum, p, j);
            }
        }
    }

    static void layerNormBackward(LayerNormBackward op) {
        int h = size(op.x(), 1);
        for (int i = 0; i < size(op.x(), 0); i++) {
            double mean = get(op.mean(), i);
            double rstd = get(op.rstd(), i);
            double[] g = new double[h];
            double sum = 0;
            double dot = 0;
            for (int j = 0; j < h; j++) {
                g[j] = get(op.dy(), i, j) * get(op.gamma(), j);
                sum += g[j] / h;
                dot += g[j] * (get(op.x(), i, j) - mean) * rstd / h;
            }
            for (int j = 0; j < h; j++) {
                double normal = (get(op.x(), i, j) - mean) * rstd;
                double residual = op.residual() == null ? 0 : get(op.residual(), i, j);
                set(op.dx(), residual + rstd * (g[j] - sum - normal * dot), i, j);
            }
        }
    }

    static void embedding(Embedding op) {
        for (int t = 0; t < size(op.d(), 0); t++) {
            for (int j = 0; j < size(op.d(), 1); j++) {
                double sum = op.residual() == null ? 0 : get(op.residual(), t, j);
                if (op.table() != null) {
                    sum += get(op.table(), getInt(op.tokens(), t), j);
                }
                if (op.positionTable() != null) {
                    sum += get(op.positionTable(), getInt(op.positions(), t) + op.positionOffset(), j);
                }
                set(op.d(), sum, t, j);
            }
        }
    }

    static void linearCrossEntropy(LinearCrossEntropy op) {
        double[][] w = ((FakeBackend.Weight) op.weight()).values();
        double loss = 0;
        double[][] dx = new double[size(op.x(), 0)][size(op.x(), 1)];
        for (int i = 0; i < size(op.rows(), 0); i++) {
            int row = getInt(op.rows(), i);
            int target = getInt(op.targets(), i);
            if (row == LinearCrossEntropy.NO_ROW) {
                continue;
            }
            double[] z = new double[w.length];
            for (int v = 0; v < w.length; v++) {
                for (int j = 0; j < w[v].length; j++) {
                    z[v] += get(op.x(), row, j) * w[v][j];
                }
            }
            double lse = logSumExp(z);
            loss += lse - z[target];
            for (int v = 0; op.dx() != null && v < w.length; v++) {
                double dz = get(op.gradScale(), 0) * (Math.exp(z[v] - lse) - (v == target ? 1 : 0));
                for (int j = 0; j < w[v].length; j++) {
                    dx[row][j] += dz * w[v][j];
                }
            }
        }
        add(op.loss(), loss, 0);
        if (op.dx() != null) {
            Elements.forEach(op.dx().shape(), at -> set(op.dx(), dx[(int) at[0]][(int) at[1]], at));
        }
    }

    static void adamw(AdamW op) {
        int n = size(op.param(), 0);
        double squares = 0;
        for (int i = 0; i < n; i++) {
            squares += Math.pow(get(op.grad(), i), 2);
        }
        double norm = Math.sqrt(squares);
        set(op.gradNorm(), norm, 0);
        if (!Double.isFinite(norm)) {
            return;
        }
        double clip = op.maxNorm() == 0 ? 1 : Math.min(1, op.maxNorm() / (norm + 1e-6));
        double lr = get(op.schedule(), 0);
        double correction1 = get(op.schedule(), 1);
        double correction2 = get(op.schedule(), 2);
        for (int i = 0; i < n; i++) {
            double g = get(op.grad(), i) * clip;
            double m = op.beta1() * get(op.m(), i) + (1 - (double) op.beta1()) * g;
            double v = op.beta2() * get(op.v(), i) + (1 - (double) op.beta2()) * g * g;
            double decayed = get(op.param(), i) * (1 - lr * op.weightDecay());
            set(op.m(), m, i);
            set(op.v(), v, i);
            set(op.param(), decayed - lr / correction1 * m / (Math.sqrt(v / correction2) + op.epsilon()), i);
        }
    }

    static double logSumExp(double[] values) {
        double max = Arrays.stream(values).max().orElseThrow();
        return max + Math.log(Arrays.stream(values).map(v -> Math.exp(v - max)).sum());
    }

    private static int size(Tensor tensor, int dim) {
        return Math.toIntExact(tensor.shape().dim(dim));
    }
}
