package dev.penumbra.expose;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.data.Batch;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.MlpObserver;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.NeuronNorms;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.Nullable;

/** Runs batches and takes down, for each group of neighbouring tokens, what each neuron of each layer weighs. */
final class UseCollector implements MlpObserver {

    private final Backend backend;
    private final int listRows;
    private final int blockSize;
    private final int neurons;
    private final ModelPass pass;
    private final Tensor[] norms;
    /** [groups, neurons] each, one a layer. */
    private final Tensor[] masses;
    private final Tensor[] fired;
    private final @Nullable Tensor workspace;
    private int tokens;

    UseCollector(Arena owner, LanguageModel model, List<NeuronNorms> layerNorms, CalibrationConfig config) {
        backend = model.backend();
        listRows = config.listRows();
        blockSize = config.blockSize();
        neurons = model.mlpNeurons();
        int layers = model.mlpLayers();
        PassShape shape = PassShape.ofRows(config.batchSize(), config.seqLen(), false);
        pass = model.openPass(owner, null, shape, PassOptions.observed(this));
        int groups = Math.ceilDiv(shape.capacity(), listRows);
        norms = new Tensor[layers];
        masses = new Tensor[layers];
        fired = new Tensor[layers];
        for (int i = 0; i < layers; i++) {
            norms[i] = backend.allocate(owner, DType.F32, Shape.of(neurons));
            try (Arena arena = Arena.ofConfined()) {
                backend.upload(Tensor.of(arena, layerNorms.get(i).fc2()), norms[i]);
            }
            masses[i] = backend.allocate(owner, DType.F32, Shape.of(groups, neurons));
            fired[i] = backend.allocate(owner, DType.F32, Shape.of(groups, neurons));
        }
        Tensor vector = Tensor.planned(DType.F32, Shape.of(neurons));
        long bytes = backend.workspaceBytes(
                mass(Tensor.planned(model.dtype(), Shape.of(listRows, neurons)), vector, vector, vector, null));
        workspace = bytes == 0 ? null : backend.allocate(owner, DType.U8, Shape.of(bytes));
    }

    private ActivationMass mass(Tensor x, Tensor norm, Tensor mass, Tensor fires, @Nullable Tensor bytes) {
        return new ActivationMass(x, null, norm, null, blockSize, listRows, null, mass, fires, bytes);
    }

    @Override
    public void afterFc1(int layer, Tensor input, @Nullable Tensor pooled, Tensor activation, Tensor reluMask,
            Tensor validRows) {
        backend.run(new Fill(0, masses[layer]));
        backend.run(new Fill(0, fired[layer]));
        for (int group = 0; group * listRows < tokens; group++) {
            Tensor rows = activation.slice(0, (long) group * listRows, Math.min(tokens, (group + 1) * listRows));
            backend.run(mass(rows, norms[layer], row(masses[layer], group), row(fired[layer], group), workspace));
        }
    }

    private Tensor row(Tensor matrix, int index) {
        return matrix.slice(0, index, index + 1L).reshape(neurons);
    }

    /** Adds a batch to what is known of each layer. */
    void add(int index, Batch batch, List<NeuronUse> layers) {
        tokens = batch.tokens();
        pass.forward(batch, null);
        int groups = Math.ceilDiv(tokens, listRows);
        for (int i = 0; i < layers.size(); i++) {
            List<float[]> mass = download(masses[i], groups);
            List<float[]> fires = download(fired[i], groups);
            for (int group = 0; group < groups; group++) {
                layers.get(i).add(index, Math.min(listRows, tokens - group * listRows), mass.get(group), fires.get(group));
            }
        }
    }

    private List<float[]> download(Tensor matrix, int rows) {
        List<float[]> result = new ArrayList<>();
        try (Arena arena = Arena.ofConfined()) {
            Tensor host = Tensor.allocate(arena, DType.F32, Shape.of(rows, neurons));
            backend.download(matrix.slice(0, 0, rows), host);
            for (int i = 0; i < rows; i++) {
                result.add(host.slice(0, i, i + 1L).toFloats());
            }
        }
        return result;
    }
}
