package dev.penumbra.expose;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.data.Batch;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.MlpObserver;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.NeuronNorms;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Runs batches and takes down, for each few neighbouring tokens, the mean of every MLP's input and what its blocks weigh.
 *
 * <p>The activations of a group are added up by a product with a matrix of ones, which is exact but for the order of its sums.
 */
final class PooledCollector implements MlpObserver {

    private static final short BF16_ONE = 0x3F80;

    private final LanguageModel model;
    private final Backend backend;
    private final List<NeuronOrder> orders;
    private final List<NeuronNorms> norms;
    private final CalibrationConfig config;
    private final int neurons;
    private final int hidden;
    private final ModelPass pass;
    private final Tensor ones;
    private final Tensor[] inputs;
    private final Tensor[] sums;
    private final @Nullable Tensor workspace;

    /** @param attention is told what the same passes' attention computes; null: nobody is */
    PooledCollector(Arena owner, LanguageModel model, LoraAdapter adapter, List<NeuronOrder> orders, List<NeuronNorms> norms,
            CalibrationConfig config, @Nullable AttentionCollector attention) {
        this.model = model;
        this.orders = orders;
        this.norms = norms;
        this.config = config;
        backend = model.backend();
        neurons = model.mlpNeurons();
        hidden = model.adaptableLayers().getFirst().in();
        int layers = model.mlpLayers();
        PassShape shape = PassShape.ofRows(config.batchSize(), config.seqLen(), false);
        pass = model.openPass(owner, adapter, shape, PassOptions.observed(this, attention));
        int pools = Math.ceilDiv(shape.capacity(), config.poolRows());
        ones = backend.allocate(owner, model.dtype(), Shape.of(pools, shape.capacity()));
        fillOnes(pools, shape.capacity());
        inputs = new Tensor[layers];
        sums = new Tensor[layers];
        for (int i = 0; i < layers; i++) {
            inputs[i] = backend.allocate(owner, DType.F32, Shape.of(pools, hidden));
            sums[i] = backend.allocate(owner, DType.F32, Shape.of(pools, neurons));
        }
        Tensor activation = Tensor.planned(model.dtype(), Shape.of(shape.capacity(), neurons));
        long bytes = backend.workspaceBytes(Gemm.product(ones, activation, sums[0]).build());
        workspace = bytes == 0 ? null : backend.allocate(owner, DType.U8, Shape.of(bytes));
    }

    /** Row p has a 1 for each token of group p. */
    private void fillOnes(int pools, int tokens) {
        try (Arena arena = Arena.ofConfined()) {
            Tensor host = Tensor.allocate(arena, model.dtype(), Shape.of(pools, tokens));
            MemorySegment memory = host.segment();
            for (int token = 0; token < tokens; token++) {
                long at = (long) (token / config.poolRows()) * tokens + token;
                if (model.dtype() == DType.BF16) {
                    memory.setAtIndex(ValueLayout.JAVA_SHORT, at, BF16_ONE);
                } else {
                    memory.setAtIndex(ValueLayout.JAVA_FLOAT, at, 1);
                }
            }
            backend.upload(host, ones);
        }
    }

    @Override
    public int poolRows() {
        return config.poolRows();
    }

    @Override
    public void afterFc1(int layer, Tensor input, @Nullable Tensor pooled, Tensor activation, Tensor reluMask,
            Tensor validRows) {
        long rows = activation.shape().dim(0);
        long pools = Math.ceilDiv(rows, config.poolRows());
        backend.run(Gemm.product(ones.slice(0, 0, pools).slice(1, 0, rows), activation, sums[layer].slice(0, 0, pools))
                .workspace(workspace).build());
        // The pass pools every layer's input in one place.
        backend.run(new Convert(pooled, inputs[layer].slice(0, 0, pools)));
    }

    /** Adds a batch's whole lists to what is known of each layer. */
    void add(int index, Batch batch, List<PooledUse> layers) {
        pass.forward(batch, null);
        int lists = batch.tokens() / config.listRows();
        int pools = lists * (config.listRows() / config.poolRows());
        if (lists == 0) {
            return;
        }
        for (int i = 0; i < layers.size(); i++) {
            layers.get(i).add(index, lists, download(inputs[i], pools),
                    blockMasses(i, download(sums[i], pools), pools));
        }
    }

    private float[] download(Tensor matrix, int rows) {
        return backend.toFloats(matrix.slice(0, 0, rows));
    }

    private float[] blockMasses(int layer, float[] activations, int pools) {
        int[] places = orders.get(layer).toArray();
        float[] weights = norms.get(layer).fc2();
        int blocks = neurons / config.blockSize();
        float[] masses = new float[pools * blocks];
        IntStream.range(0, pools).parallel().forEach(pool -> {
            for (int place = 0; place < neurons; place++) {
                int neuron = places[place];
                masses[pool * blocks + place / config.blockSize()] += activations[pool * neurons + neuron] * weights[neuron];
            }
        });
        return masses;
    }
}
