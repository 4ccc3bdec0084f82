package dev.penumbra.backend;

import static dev.penumbra.backend.Elements.add;
import static dev.penumbra.backend.Elements.get;
import static dev.penumbra.backend.Elements.getInt;
import static dev.penumbra.backend.Elements.set;

import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.tensor.Tensor;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** Attention, the lists of blocks that it is computed by, and what chooses them, straight from their definitions. */
final class ReferenceAttention {

    private ReferenceAttention() {
    }

    /** Rows [from, to) of a batch. */
    private record Sample(int number, int from, int to) {

        static List<Sample> of(Tensor cuSeqlens) {
            return IntStream.range(0, size(cuSeqlens, 0) - 1)
                    .mapToObj(s -> new Sample(s, getInt(cuSeqlens, s), getInt(cuSeqlens, s + 1))).toList();
        }

        int length() {
            return to - from;
        }

        int blocks(int size) {
            return Math.ceilDiv(length(), size);
        }

        int slot(int block, int size) {
            return from / size + number + block;
        }
    }

    static void forward(AttentionForward op) {
        ReferenceOps.fill(new Fill(0, op.o()));
        if (op.lse() != null) {
            ReferenceOps.fill(new Fill(0, op.lse()));
        }
        for (int s = 0; s + 1 < size(op.cuSeqlensQ(), 0); s++) {
            Sample queries = new Sample(s, getInt(op.cuSeqlensQ(), s), getInt(op.cuSeqlensQ(), s + 1));
            int from = getInt(op.cuSeqlensK(), s);
            int hidden = getInt(op.cuSeqlensK(), s + 1) - from - queries.length();
            for (int head = 0; head < size(op.q(), 1); head++) {
                for (int t = queries.from; t < queries.to; t++) {
                    int[] keys = seen(op.blocks(), queries, head, t - queries.from, hidden + t - queries.from + 1);
                    forward(op, head, t, Arrays.stream(keys).map(u -> from + u).toArray());
                }
            }
        }
    }

    private static void forward(AttentionForward op, int head, int t, int[] keys) {
        if (keys.length == 0) {
            return;
        }
        double[] scores = scores(op.q(), op.k(), op.scale(), head, t, keys);
        double lse = ReferenceOps.logSumExp(scores);
        for (int c = 0; c < size(op.q(), 2); c++) {
            double sum = 0;
            for (int u = 0; u < keys.length; u++) {
                sum += Math.exp(scores[u] - lse) * get(op.v(), keys[u], head, c);
            }
            set(op.o(), sum, t, head, c);
        }
        if (op.lse() != null) {
            set(op.lse(), lse, head, t);
        }
    }

    static void backward(AttentionBackward op) {
        double[][][][] d = new double[3][size(op.q(), 0)][size(op.q(), 1)][size(op.q(), 2)];
        for (Sample sample : Sample.of(op.cuSeqlens())) {
            for (int head = 0; head < size(op.q(), 1); head++) {
                for (int t = sample.from; t < sample.to; t++) {
                    int[] keys = seen(op.blocks(), sample, head, t - sample.from, t - sample.from + 1);
                    backward(op, head, t, Arrays.stream(keys).map(u -> sample.from + u).toArray(), d);
                }
            }
        }
        Tensor[] targets = {op.dq(), op.dk(), op.dv()};
        for (int i = 0; i < 3; i++) {
            double[][][] values = d[i];
            Tensor target = targets[i];
            if (target == null) {
                continue;
            }
            Elements.forEach(
                    target.shape(), at -> set(target, values[(int) at[0]][(int) at[1]][(int) at[2]], at));
        }
    }

    private static void backward(AttentionBackward op, int head, int t, int[] keys, double[][][][] d) {
        double[] scores = scores(op.q(), op.k(), op.scale(), head, t, keys);
        double lse = get(op.lse(), head, t);
        double delta = 0;
        for (int c = 0; c < size(op.q(), 2); c++) {
            delta += get(op.dO(), t, head, c) * get(op.o(), t, head, c);
        }
        for (int i = 0; i < keys.length; i++) {
            int u = keys[i];
            double p = Math.exp(scores[i] - lse);
            double dp = 0;
            for (int c = 0; c < size(op.q(), 2); c++) {
                double dO = get(op.dO(), t, head, c);
                dp += dO * get(op.v(), u, head, c);
                d[2][u][head][c] += p * dO;
            }
            double ds = op.scale() * p * (dp - delta);
            for (int c = 0; c < size(op.q(), 2); c++) {
                d[0][t][head][c] += ds * get(op.k(), u, head, c);
                d[1][u][head][c] += ds * get(op.q(), t, head, c);
            }
        }
    }

    /** Keys, counted in their sample, that query {@code row} of a sample sees: those below {@code visible} that are listed. */
    private static int[] seen(@Nullable AttentionBlocks blocks, Sample sample, int head, int row, int visible) {
        if (blocks == null) {
            return IntStream.range(0, visible).toArray();
        }
        int slot = sample.slot(row / blocks.size(), blocks.size());
        int count = getInt(blocks.counts(), head, slot);
        int before = -1;
        for (int c = 0; c < count; c++) {
            int block = getInt(blocks.indices(), head, slot, c);
            if (block <= before || block > row / blocks.size()) {
                throw new IllegalStateException("expected the list of head " + head + ", slot " + slot
                        + " to ascend to at most " + row / blocks.size() + ", found " + block + " after " + before);
            }
            before = block;
        }
        return IntStream.range(0, count).map(c -> getInt(blocks.indices(), head, slot, c) * blocks.size())
                .flatMap(first -> IntStream.range(first, Math.min(first + blocks.size(), visible))).toArray();
    }

    private static double[] scores(Tensor q, Tensor k, float scale, int head, int t, int[] keys) {
        double[] scores = new double[keys.length];
        for (int u = 0; u < keys.length; u++) {
            for (int c = 0; c < size(q, 2); c++) {
                scores[u] += scale * get(q, t, head, c) * get(k, keys[u], head, c);
            }
        }
        return scores;
    }

    static void mass(AttentionMass op) {
        ReferenceOps.fill(new Fill(0, op.mass()));
        for (Sample sample : Sample.of(op.cuSeqlens())) {
            for (int head = 0; head < size(op.q(), 1); head++) {
                for (int row = 0; row < sample.length(); row++) {
                    if ((row + 1) % op.queryStride() != 0 && row + 1 != sample.length()) {
                        continue;
                    }
                    int[] keys = IntStream.rangeClosed(sample.from, sample.from + row).toArray();
                    double[] scores = scores(op.q(), op.k(), op.scale(), head, sample.from + row, keys);
                    for (int key = 0; key <= row; key++) {
                        add(op.mass(), Math.exp(scores[key] - get(op.lse(), head, sample.from + row)), head,
                                sample.slot(row / op.size(), op.size()), key / op.size());
                    }
                }
            }
        }
    }

    static void predict(PredictAttention op) {
        ReferenceOps.fill(new Fill(0, op.mass()));
        for (Sample sample : Sample.of(op.cuSeqlens())) {
            int[] rows = IntStream.range(0, size(op.pooled(), 0)).filter(g -> {
                int middle = middle(op, g);
                return middle >= sample.from && middle < sample.to;
            }).toArray();
            int[] block = Arrays.stream(rows).map(g -> (middle(op, g) - sample.from) / op.size()).toArray();
            for (int head = 0; head < size(op.a(), 1); head++) {
                double[][] queries = projected(op, 0, head, rows);
                double[][] keys = projected(op, 1, head, rows);
                for (int i = 0; i < sample.blocks(op.size()); i++) {
                    int own = i;
                    int[] asked = IntStream.range(0, rows.length).filter(g -> block[g] == own).toArray();
                    if (asked.length == 0) {
                        asked = IntStream.range(0, rows.length).filter(g -> block[g] < own).skip(
                                Math.max(0, Arrays.stream(block).filter(b -> b < own).count() - 1)).toArray();
                    }
                    for (int g : asked) {
                        double[] scores = new double[g + 1];
                        for (int other = 0; other <= g; other++) {
                            scores[other] = get(op.distance(), head, block[g] - block[other]);
                            for (int c = 0; c < queries[g].length; c++) {
                                scores[other] += queries[g][c] * keys[other][c];
                            }
                        }
                        double lse = ReferenceOps.logSumExp(scores);
                        for (int other = 0; other <= g; other++) {
                            add(op.mass(), op.poolRows() * Math.exp(scores[other] - lse), head, sample.slot(i, op.size()),
                                    block[other]);
                        }
                    }
                }
            }
        }
    }

    private static int middle(PredictAttention op, int row) {
        return row * op.poolRows() + op.poolRows() / 2;
    }

    private static double[][] projected(PredictAttention op, int part, int head, int[] rows) {
        double[][] z = new double[rows.length][size(op.a(), 2)];
        for (int g = 0; g < rows.length; g++) {
            for (int r = 0; r < z[g].length; r++) {
                z[g][r] = get(op.bias(), part, head, r);
                for (int j = 0; j < size(op.pooled(), 1); j++) {
                    z[g][r] += get(op.pooled(), rows[g], j) * get(op.a(), part, head, r, j);
                }
            }
        }
        return z;
    }

    static void select(SelectAttention op) {
        AttentionBlocks lists = op.blocks();
        int heads = Math.toIntExact(lists.heads());
        Map<Sample, boolean[][][]> choices = new HashMap<>();
        double[] kept = new double[2];
        double[] covered = new double[2];
        double[] cut = new double[2];
        for (Sample sample : Sample.of(op.cuSeqlens())) {
            int n = sample.blocks(lists.size());
            boolean[][][] ofHeads = choices.computeIfAbsent(sample, s -> new boolean[heads][n][n]);
            for (int head = 0; head < heads && n > 0; head++) {
                double[][] mass = masses(op, sample, head, n);
                boolean[][] chosen = ofHeads[head];
                double sum = 0;
                double all = 0;
                int count = 0;
                for (int i = 0; i < n; i++) {
                    chosen[i][0] = chosen[i][i] = true;
                    count += i == 0 ? 1 : 2;
                    sum += mass[i][0] + (i == 0 ? 0 : mass[i][i]);
                    all += Arrays.stream(mass[i]).sum();
                }
                int possible = n * (n + 1) / 2;
                float budget = op.budgets() == null ? 1 : (float) get(op.budgets(), head);
                int most = Math.max(count, (int) (budget * possible));
                int[] rest = IntStream.range(0, n * n).filter(at -> mass[at / n][at % n] > 0 && !chosen[at / n][at % n])
                        .boxed().sorted(Comparator.comparing((Integer at) -> -mass[at / n][at % n]).thenComparing(at -> at))
                        .mapToInt(Integer::intValue).toArray();
                int next = 0;
                while (next < rest.length && (op.coverage() == 1 || sum < op.coverage() * all) && count < most) {
                    int at = rest[next++];
                    chosen[at / n][at % n] = true;
                    sum += mass[at / n][at % n];
                    count++;
                }
                tell(kept, count, possible);
                tell(covered, sum, all);
                tell(cut, next < rest.length && (op.coverage() == 1 || sum < op.coverage() * all) ? 1 : 0, 1);
            }
        }
        List<Sample> samples = Sample.of(op.cuSeqlens());
        write(lists, op.cuSeqlens(), (head, sample, i, j) -> choices.get(samples.get(sample))[head][i][j]);
        if (op.summary() != null) {
            set(op.summary(), kept[1] == 0 ? 0 : kept[0] / kept[1], 0);
            set(op.summary(), covered[1] == 0 ? 1 : covered[0] / covered[1], 1);
            set(op.summary(), cut[1] == 0 ? 0 : cut[0] / cut[1], 2);
        }
    }

    private static void tell(double[] sums, double part, double whole) {
        sums[0] += part;
        sums[1] += whole;
    }

    private static double[][] masses(SelectAttention op, Sample sample, int head, int n) {
        double[][] mass = new double[n][n];
        for (int i = 0; i < n; i++) {
            for (int j = 0; j <= i; j++) {
                double value = op.mass() != null
                        ? get(op.mass(), head, sample.slot(i, op.blocks().size()), j)
                        : get(op.table(), head, i, j);
                mass[i][j] = value > 0 ? value : 0;
            }
        }
        return mass;
    }

    /** Which key blocks each head's query blocks attend to. */
    interface Choice {
        boolean keeps(int head, int sample, int queryBlock, int keyBlock);
    }

    /** Writes lists on the host, with their transposes and order. */
    static void write(AttentionBlocks lists, Tensor cuSeqlens, Choice choice) {
        ReferenceOps.fill(new Fill(0, lists.counts()));
        ReferenceOps.fill(new Fill(0, lists.transposedCounts()));
        for (Sample sample : Sample.of(cuSeqlens)) {
            for (int head = 0; head < lists.heads(); head++) {
                write(lists, sample, head, choice);
            }
        }
        order(lists, cuSeqlens);
    }

    private static void write(AttentionBlocks lists, Sample sample, int head, Choice choice) {
        for (int i = 0; i < sample.blocks(lists.size()); i++) {
            for (int j = 0; j <= i; j++) {
                if (choice.keeps(head, sample.number, i, j)) {
                    append(lists.indices(), lists.counts(), head, sample.slot(i, lists.size()), j);
                    append(lists.transposedIndices(), lists.transposedCounts(), head, sample.slot(j, lists.size()), i);
                }
            }
        }
    }

    private static void append(Tensor indices, Tensor counts, int head, int slot, int block) {
        set(indices, block, head, slot, getInt(counts, head, slot));
        add(counts, 1, head, slot);
    }

    private static void order(AttentionBlocks lists, Tensor cuSeqlens) {
        int slots = Math.toIntExact(lists.slots());
        int[] held = Sample.of(cuSeqlens).stream()
                .flatMapToInt(s -> IntStream.range(0, s.blocks(lists.size())).map(i -> s.slot(i, lists.size()))).toArray();
        ReferenceOps.fill(new Fill(-1, lists.order()));
        for (int side = 0; side < 2; side++) {
            Tensor counts = side == 0 ? lists.counts() : lists.transposedCounts();
            int[] ids = IntStream.range(0, Math.toIntExact(lists.heads())).boxed()
                    .flatMap(h -> Arrays.stream(held).mapToObj(slot -> h * slots + slot))
                    .sorted(Comparator.comparing((Integer id) -> -getInt(counts, id / slots, id % slots)))
                    .mapToInt(Integer::intValue).toArray();
            for (int i = 0; i < ids.length; i++) {
                set(lists.order(), ids[i], side, i);
            }
        }
    }

    private static int size(Tensor tensor, int dim) {
        return Math.toIntExact(tensor.shape().dim(dim));
    }
}
