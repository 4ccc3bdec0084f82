package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.DropoutSeed;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.Opt;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.function.IntPredicate;
import java.util.function.UnaryOperator;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/** A random model with MLPs of a few blocks, an adapter with matrices that are not zero, and samples. */
final class SparseFixture implements AutoCloseable {

    static final int BLOCK = 32;
    /** An odd number of blocks. */
    static final int BLOCKS = 5;

    static final int POSITIONS = 48;
    static final Set<String> ALL = Set.copyOf(LoraConfig.OPT_TARGETS);

    final Arena arena = Arena.ofShared();
    final Backend backend;
    final ModelFolder files;
    final LanguageModel model;
    final LoraAdapter adapter;
    final Dataset data;

    private final int hidden;
    private final int positions;
    private final int tokens;
    private int superviseEvery = 1;

    /** What a batch gives. */
    @SuppressWarnings("ArrayRecordComponent")
    record Result(double loss, float[] gradient) {
    }

    /** Takes the backend, and closes it. */
    SparseFixture(Path folder, Backend backend, boolean preNorm, int layers, Set<String> targets, IntPredicate dead,
            List<NeuronOrder> orders) throws IOException {
        this(folder, backend, preNorm, layers, targets, dead, orders, 0);
    }

    SparseFixture(Path folder, Backend backend, boolean preNorm, int layers, Set<String> targets, IntPredicate dead,
            List<NeuronOrder> orders, double dropout) throws IOException {
        this(folder, backend, sizes(preNorm, layers), targets, dead, orders, dropout, new int[0]);
    }

    SparseFixture(Path folder, Backend backend, RandomOpt sizes, Set<String> targets, IntPredicate dead,
            List<NeuronOrder> orders, double dropout, int... lengths) throws IOException {
        this(folder, backend, sizes, DType.F32, targets, dead, orders, dropout, lengths);
    }

    /**
     * @param dtype products are computed in
     * @param lengths the samples'; none: of seven, that are drawn
     */
    SparseFixture(Path folder, Backend backend, RandomOpt sizes, DType dtype, Set<String> targets, IntPredicate dead,
            List<NeuronOrder> orders, double dropout, int... lengths) throws IOException {
        this.backend = backend;
        hidden = sizes.hidden();
        positions = sizes.positions();
        Random random = new Random(17);
        sizes.write(folder, random, dead);
        files = ModelFolder.open(folder);
        Opt opt = Opt.open(backend, arena, files, dtype, orders);
        opt.load();
        model = opt;
        adapter = LoraAdapter.create(backend, arena, new LoraConfig(3, 6, dropout, targets, false), model.adaptableLayers(),
                model.peftPrefix(), 3);
        float[] parameters = new float[Math.toIntExact(adapter.parameters().shape().size())];
        for (LoraAdapter.Site site : adapter.sites()) {
            for (int i = 0; i < site.r() * site.layer().in(); i++) {
                parameters[Math.toIntExact(site.offsetA()) + i] = (float) (0.1 * random.nextGaussian());
            }
            for (int i = 0; i < site.r() * site.layer().out(); i++) {
                parameters[Math.toIntExact(site.offsetB()) + i] = (float) (0.1 * random.nextGaussian());
            }
        }
        adapter.setParameters(parameters);
        data = samples(random, lengths);
        tokens = data.size() * positions;
    }

    SparseFixture(Path folder, Backend backend, boolean preNorm) throws IOException {
        this(folder, backend, preNorm, 3, ALL, neuron -> false, List.of());
    }

    static RandomOpt sizes(boolean preNorm, int layers) {
        return new RandomOpt(24, 2, BLOCK * BLOCKS, layers, 50, POSITIONS, preNorm ? 24 : 20, preNorm, false);
    }

    /** @param lengths the samples'; none: of seven, that are drawn */
    private static Dataset samples(Random random, int... lengths) {
        List<Sample> samples = new ArrayList<>();
        for (int s = 0; s < (lengths.length == 0 ? 7 : lengths.length); s++) {
            int[] ids = random.ints(lengths.length == 0 ? random.nextInt(20, POSITIONS + 1) : lengths[s], 0, 50).toArray();
            boolean[] supervised = new boolean[ids.length];
            Arrays.fill(supervised, random.nextInt(1, Math.min(10, ids.length)), ids.length, true);
            samples.add(new Sample(ids, supervised));
        }
        return Dataset.of(samples);
    }

    /** A coverage and a budget, where the policy takes them. */
    static SparsityConfig config(SelectionPolicy policy, Pass pass, double coverage, double budget, int rowsPerList) {
        return new SparsityConfig(policy, pass, policy.takesCoverage() ? coverage : 1, policy.takesBudget() ? budget : 1,
                BLOCK, rowsPerList, 0, 1, false);
    }

    /** Every layer's, with predictors of random numbers where the policy has some. */
    MlpSparsity sparsity(SparsityConfig config) throws IOException {
        if (!config.policy().needsCalibration()) {
            return SparsityPlanner.plan(model, config, null);
        }
        SparsityConfig plain = new SparsityConfig(SelectionPolicy.ORACLE, config.pass(), config.coverage(), config.budget(),
                config.blockSize(), config.rowsPerList(), 0, config.senseEvery(), false);
        Random random = new Random(5);
        return changed(new MlpSparsity(config, model.mlpNeurons(), SparsityPlanner.plan(model, plain, null).layers()),
                layer -> new MlpSparsity.Layer(layer.capacity(), layer.coverage(), null,
                        new LowRankPredictor(4, hidden, BLOCKS, gaussian(random, 4 * hidden), gaussian(random, 4 * BLOCKS),
                                gaussian(random, BLOCKS), null, 1, 16),
                        layer.activationNorms(), layer.gradientNorms()));
    }

    /** A mask that is the same in every layer and batch. */
    MlpSparsity fixed(Pass pass, int... blocks) throws IOException {
        float[] scores = new float[BLOCKS];
        for (int block : blocks) {
            scores[block] = 1;
        }
        // Of these scores, all that are above 0.
        return changed(sparsity(config(SelectionPolicy.STATIC, pass, 0.999, 1, 0)), layer -> new MlpSparsity.Layer(
                layer.capacity(), 0.9999, scores, null, layer.activationNorms(), layer.gradientNorms()));
    }

    static MlpSparsity changed(MlpSparsity sparsity, UnaryOperator<MlpSparsity.Layer> change) {
        return new MlpSparsity(sparsity.config(), sparsity.neurons(), sparsity.layers().stream().map(change).toList());
    }

    private static float[] gaussian(Random random, int count) {
        float[] values = new float[count];
        for (int i = 0; i < count; i++) {
            values[i] = (float) random.nextGaussian();
        }
        return values;
    }

    ModelPass open(@Nullable MlpSparsity sparsity) {
        return open(sparsity, null);
    }

    ModelPass open(@Nullable MlpSparsity sparsity, @Nullable AttentionSparsity attention) {
        return model.openPass(arena, adapter, shape(), PassOptions.sparse(sparsity, attention));
    }

    PassShape shape() {
        return new PassShape(tokens, positions, true);
    }

    Batch batch() {
        Batch all = new Batches(data, data.size(), positions, true, false, 0).next();
        return new Batch(all.ids(), all.positions(), all.cuSeqlens(), some(all.rows()), some(all.targets()),
                all.maxSeqlen(), all.realTokens());
    }

    private int[] some(int[] all) {
        return IntStream.range(0, all.length).filter(i -> i % superviseEvery == superviseEvery - 1).map(i -> all[i])
                .toArray();
    }

    /** Leaves the batch's other tokens without a target. */
    SparseFixture superviseEvery(int nth) {
        superviseEvery = nth;
        return this;
    }

    Result dense() {
        return run(open(null), Mode.DENSE, null);
    }

    Result sparse(MlpSparsity sparsity) {
        return run(open(sparsity), Mode.SPARSE, new DropoutSeed(1, 1));
    }

    /** Loss summed over the batch, and its gradient. */
    Result run(ModelPass pass, Mode mode, @Nullable DropoutSeed seed) {
        Tensor loss = backend.allocate(arena, DType.F32, Shape.of(1));
        Tensor scale = backend.allocate(arena, DType.F32, Shape.of(1));
        Tensor grad = backend.allocate(arena, DType.F32, adapter.parameters().shape());
        Scalars.write(backend, scale, 1);
        pass.load(batch(), seed, mode);
        pass.forward();
        pass.addLossAndGradients(loss, scale, grad);
        return new Result(Scalars.read(backend, loss), host(grad));
    }

    /** The loss alone. */
    double loss(ModelPass pass, Mode mode, @Nullable DropoutSeed seed) {
        Tensor loss = backend.allocate(arena, DType.F32, Shape.of(1));
        backend.run(new Fill(0, loss));
        pass.load(batch(), seed, mode);
        pass.forward();
        pass.addLoss(loss);
        return Scalars.read(backend, loss);
    }

    float[] host(Tensor device) {
        Tensor host = Tensor.allocate(arena, device.dtype(), device.shape());
        backend.download(device, host);
        return host.toFloats();
    }

    /** Kept, covered and cut of each layer. */
    float[] summaries(ModelPass pass) {
        return backend.read(pass.blockChoice().summaries()).floats();
    }

    @Override
    public void close() {
        arena.close();
        backend.close();
        files.close();
    }
}
