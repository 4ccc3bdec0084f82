package dev.penumbra.expose;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.AdaptableLayer;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.predict.AttentionHeadMap;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.predict.Matrix;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * The weights that make a layer's queries and keys, as the checkpoint has them: what pooled inputs become under them, and thin
 * maps folded into them. A mean's query is the mean of the queries: the map is affine.
 *
 * @param q [hidden, hidden]: rows by head and dimension
 * @param k [hidden, hidden]
 * @param bq [hidden]
 * @param bk [hidden]
 */
@SuppressWarnings("ArrayRecordComponent")
record HeadProjections(int hidden, float[] q, float[] k, float[] bq, float[] bk) {

    /** Pooled rows that go through the weights at once. */
    private static final int ROWS_AT_ONCE = 4096;

    /** A layer's, out of the model's folder. */
    static HeadProjections read(LanguageModel model, ModelFolder folder, int layer) throws IOException {
        AdaptableLayer q = named(model, layer, "q_proj");
        AdaptableLayer k = named(model, layer, "k_proj");
        return new HeadProjections(Math.toIntExact(q.in()), floats(folder, q.name() + ".weight"),
                floats(folder, k.name() + ".weight"), floats(folder, q.name() + ".bias"),
                floats(folder, k.name() + ".bias"));
    }

    private static AdaptableLayer named(LanguageModel model, int layer, String kind) {
        return model.adaptableLayers().stream().filter(l -> l.layer() == layer && l.kind().equals(kind)).findFirst()
                .orElseThrow(
                        () -> new IllegalArgumentException("expected a " + kind + " in layer " + layer + ", found none"));
    }

    private static float[] floats(ModelFolder folder, String name) throws IOException {
        String full = folder.decoderPrefix() + name;
        float[] values = folder.tensor(full).toFloats();
        folder.release(full);
        return values;
    }

    /** Queries and keys [rows, 2 · hidden] of pooled rows [rows, hidden], computed on a backend in its compute dtype. */
    float[] of(Backend backend, DType compute, float[] pooled) {
        int rows = pooled.length / hidden;
        float[] result = new float[Math.multiplyExact(rows, 2 * hidden)];
        try (Arena arena = Arena.ofShared()) {
            FrozenWeight weight = backend.pack(arena, new FrozenWeight.Form(2L * hidden, hidden, compute, false),
                    List.of(Tensor.of(arena, q).reshape(hidden, hidden), Tensor.of(arena, k).reshape(hidden, hidden)));
            Tensor bias = backend.allocate(arena, DType.F32, Shape.of(2L * hidden));
            float[] both = new float[2 * hidden];
            System.arraycopy(bq, 0, both, 0, hidden);
            System.arraycopy(bk, 0, both, hidden, hidden);
            backend.upload(Tensor.of(arena, both), bias);
            int most = Math.min(rows, ROWS_AT_ONCE);
            Tensor staged = Tensor.allocate(arena, DType.F32, Shape.of(most, hidden));
            Tensor x = backend.allocate(arena, DType.F32, staged.shape());
            Tensor converted = compute == DType.F32 ? x : backend.allocate(arena, compute, staged.shape());
            Tensor d = backend.allocate(arena, DType.F32, Shape.of(most, 2L * hidden));
            Tensor host = Tensor.allocate(arena, DType.F32, d.shape());
            long bytes = backend.workspaceBytes(Gemm.forward(converted, weight, d).bias(bias).build());
            Tensor workspace = bytes == 0 ? null : backend.allocate(arena, DType.U8, Shape.of(bytes));
            for (int from = 0; from < rows; from += most) {
                int count = Math.min(most, rows - from);
                float[] part = Arrays.copyOfRange(pooled, from * hidden, (from + count) * hidden);
                staged.slice(0, 0, count).copyFrom(part);
                backend.upload(staged.slice(0, 0, count), x.slice(0, 0, count));
                if (converted != x) {
                    backend.run(new Convert(x.slice(0, 0, count), converted.slice(0, 0, count)));
                }
                backend.run(Gemm.forward(converted.slice(0, 0, count), weight, d.slice(0, 0, count)).bias(bias)
                        .workspace(workspace).build());
                backend.download(d.slice(0, 0, count), host.slice(0, 0, count));
                System.arraycopy(host.slice(0, 0, count).toFloats(), 0, result, from * 2 * hidden, count * 2 * hidden);
            }
            backend.synchronize();
        }
        return result;
    }

    /** a[0, h] = Pq W_q[h], bias[0, h] = Pq b_q[h] + its own; likewise of keys. Maps may be of any head count. */
    AttentionPredictor folded(List<AttentionHeadMap> maps, int poolRows, int blockSize) {
        int heads = maps.size();
        int rank = maps.getFirst().rank();
        int width = maps.getFirst().distance().length;
        float[] a = new float[2 * heads * rank * hidden];
        float[] bias = new float[2 * heads * rank];
        float[] distance = new float[heads * width];
        IntStream.range(0, heads).parallel().forEach(h -> {
            AttentionHeadMap map = maps.get(h);
            fold(map.pq(), map.bq(), q, bq, h, map, a, bias, h);
            fold(map.pk(), map.bk(), k, bk, h, map, a, bias, heads + h);
            System.arraycopy(map.distance(), 0, distance, h * width, width);
        });
        return new AttentionPredictor(heads, rank, hidden, width, a, bias, distance, poolRows, blockSize);
    }

    private void fold(float[] p, float[] own, float[] weight, float[] weightBias, int head, AttentionHeadMap map, float[] a,
            float[] bias, int place) {
        int headDim = map.headDim();
        for (int r = 0; r < map.rank(); r++) {
            double sum = own[r];
            for (int d = 0; d < headDim; d++) {
                float factor = p[r * headDim + d];
                int row = head * headDim + d;
                Matrix.addRow(factor, weight, row * hidden, a, (place * map.rank() + r) * hidden, hidden);
                sum += (double) factor * weightBias[row];
            }
            bias[place * map.rank() + r] = (float) sum;
        }
    }
}
