package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Graph;
import dev.penumbra.backend.Readback;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.DataException;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.internal.Counted;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.io.RunLock;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.DropoutSeed;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.MlpExposure;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.zip.CRC32C;
import org.jspecify.annotations.Nullable;

/**
 * Tunes an adapter. A run is a function of model, adapter, data, configuration and threads: equal ones give equal bits.
 *
 * <p>The gradient of a step is the mean over all supervised tokens of its micro-batches, however they are divided.
 */
public final class Trainer {

    private final LanguageModel model;
    private final LoraAdapter adapter;
    private final TrainConfig config;
    private final Dataset data;
    private final @Nullable Dataset evaluation;
    private final Backend backend;
    private final Batches batches;
    private final int totalSteps;
    private int stepsDone;
    private final List<StepListener> listeners = new ArrayList<>();
    private @Nullable MlpExposure exposure;
    private @Nullable AttentionExposure attentionExposure;
    private @Nullable PassOptions options;
    private volatile boolean cancelled;

    /**
     * @param model opened or loaded, on the adapter's backend
     * @param adapter is tuned in place
     * @param evaluation data whose loss is told to listeners, or null
     * @throws IllegalArgumentException when rows are longer than the model's positions, steps too many to count, or evaluations
     *         asked for without data
     * @throws DataException when no token of the data or of the evaluation's is supervised, or a sample of them is longer than a
     *         row or has a token that the model has not
     */
    public Trainer(LanguageModel model, LoraAdapter adapter, TrainConfig config, Dataset data,
            @Nullable Dataset evaluation) {
        model.requirePositions(config.seqLen());
        if (config.evalEvery() > 0 && evaluation == null) {
            throw new IllegalArgumentException(
                    "expected evaluation data for evaluations every " + Counted.of(config.evalEvery(), "step")
                            + ", found none");
        }
        this.model = model;
        this.adapter = adapter;
        this.config = config;
        this.data = data;
        this.evaluation = evaluation;
        this.backend = model.backend();
        batches = new Batches(data, config.batchSize(), config.seqLen(), config.pack(), config.shuffle(), config.seed());
        requireTokens(data);
        if (evaluation != null) {
            // What they refuse is refused now, not after the steps before the first evaluation.
            evaluationBatches();
            requireTokens(evaluation);
        }
        totalSteps = config.steps() > 0 ? config.steps() : stepsOfEpochs();
    }

    private void requireTokens(Dataset samples) {
        int vocabulary = model.vocabSize();
        for (int i = 0; i < samples.size(); i++) {
            for (int id : samples.get(i).ids()) {
                if (id < 0 || id >= vocabulary) {
                    throw new DataException(samples.describe(i) + ": expected tokens in [0, " + vocabulary + "), found " + id
                            + ": is the tokenizer another model's?");
                }
            }
        }
    }

    private Batches evaluationBatches() {
        return new Batches(evaluation, config.batchSize(), config.seqLen(), true, false, 0);
    }

    private int stepsOfEpochs() {
        long steps = 0;
        for (int epoch = 0; epoch < config.epochs() && steps <= Integer.MAX_VALUE; epoch++) {
            steps += Math.ceilDiv(batches.batchesIn(epoch), config.gradAccum());
        }
        if (steps > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("expected at most " + Integer.MAX_VALUE + " steps, found more in "
                    + config.epochs() + " epochs");
        }
        return (int) steps;
    }

    public Trainer listener(StepListener listener) {
        listeners.add(listener);
        return this;
    }

    /** What calibration has found out about the model's MLPs, for the policies that use it; the model is loaded in its order. */
    public Trainer exposure(@Nullable MlpExposure found) {
        exposure = found;
        options = null;
        return this;
    }

    /** What calibration has found out about the model's attention, for the policies that use it. */
    public Trainer attentionExposure(@Nullable AttentionExposure found) {
        attentionExposure = found;
        options = null;
        return this;
    }

    /** Optimizer steps of the whole run. */
    public int totalSteps() {
        return totalSteps;
    }

    /** Steps of {@link #totalSteps} that the last {@link #run} had behind it when it returned, those that it resumed included. */
    public int stepsDone() {
        return stepsDone;
    }

    /**
     * Ends the run after the steps under way, with a checkpoint of what they did; a run that has done no step saves nothing.
     * From any thread.
     */
    public void cancel() {
        cancelled = true;
    }

    /** What the run's pass is opened with, once its plan is made: that reads weights. */
    private PassOptions options() {
        if (options == null) {
            try {
                options = PassOptions.sparse(
                        config.sparsity().isOff() ? null : SparsityPlanner.plan(model, config.sparsity(), exposure),
                        config.attention().isOff()
                                ? null
                                : AttentionPlanner.plan(model, config.attention(), config.seqLen(), attentionExposure))
                        .offloading(config.offloadedLayers()).forLoss();
            } catch (IOException failure) {
                throw new UncheckedIOException(failure.getMessage(), failure);
            }
        }
        return options;
    }

    private String baseModel() {
        return config.baseModel().isEmpty() ? model.directory().toString() : config.baseModel();
    }

    private PassShape shape() {
        return PassShape.ofRows(config.batchSize(), config.seqLen(), true);
    }

    /**
     * Everything that a run holds: what is resident, what {@link #run} allocates before its first step, and its largest copies on
     * the host. Neither model nor run has to be loaded for it.
     */
    public MemoryPlan plan() {
        MemoryPlan plan = new MemoryPlan();
        model.describeWeights(plan);
        plan.addResident(MemoryPlan.Kind.ADAPTER, "adapter", adapter.byteSize());
        OptimizerState.plan(plan, adapter, config);
        model.planPass(plan, adapter, shape(), options());
        plan.addResident(MemoryPlan.Kind.WORKSPACE, "the backend's own", backend.internalBytes());
        plan.add(MemoryPlan.Kind.HOST, "adapter before training", adapter.byteSize());
        if (config.output() != null) {
            plan.add(MemoryPlan.Kind.HOST, "checkpoint: adapter, m, v", 3 * adapter.byteSize());
        }
        return plan;
    }

    /** What the run computes with; a resumed one must agree in it. */
    private String settings() {
        return "steps=" + totalSteps + " batch_size=" + config.batchSize() + " seq_len=" + config.seqLen() + " lr="
                + config.lr() + " schedule="
                + config.schedule() + " warmup_steps=" + config.warmupSteps() + " weight_decay=" + config.weightDecay()
                + " clip=" + config.clip()
                + " grad_accum=" + config.gradAccum() + " seed=" + config.seed() + " shuffle=" + config.shuffle() + " pack="
                + config.pack()
                + " samples=" + data.size() + " data=" + Long.toHexString(checksum()) + " dtype=" + model.dtype()
                + " weights=" + model.sampledWeightsHash().substring(0, 16)
                + " sparsity=" + config.sparsity().describe()
                + (config.sparsity().isOff() || exposure == null ? "" : " calibration=" + exposure.identity())
                + (config.attention().isOff() ? "" : " attention=" + config.attention().describe())
                + (config.attention().isOff() || attentionExposure == null
                        ? ""
                        : " attention_calibration=" + attentionExposure.identity());
    }

    /** CRC32C over the samples: a resumed run goes on with the same ones. */
    private long checksum() {
        CRC32C crc = new CRC32C();
        for (int i = 0; i < data.size(); i++) {
            Sample sample = data.get(i);
            ByteBuffer bytes = ByteBuffer.allocate(Integer.BYTES * (sample.length() + 1)).putInt(sample.length());
            for (int t = 0; t < sample.length(); t++) {
                // The sign bit tells what is supervised: no token has it.
                bytes.putInt(sample.supervised()[t] ? ~sample.ids()[t] : sample.ids()[t]);
            }
            crc.update(bytes.flip());
        }
        return crc.getValue();
    }

    /**
     * Trains to the last step, or until {@link #cancel}, and writes the adapter where there is an output, whose folder it holds
     * against other runs until it returns. Loads the model's weights where that is not done.
     *
     * @return metrics of the last step; null when it did none: because none was left, and the adapter of the last checkpoint is
     *         written then, or because it was cancelled before, and nothing is; {@link #stepsDone} tells which
     * @throws dev.penumbra.model.ModelException before anything is loaded, when the plan does not fit into memory
     * @throws TrainingException when a loss or gradient is not finite, naming the step; checkpoints before it stay. Before
     *         anything is loaded, when the output has checkpoints that this run does not resume, or an adapter without one; or
     *         checkpoints that it cannot resume
     * @throws UncheckedIOException when another run holds the output, or it cannot be written
     */
    public @Nullable StepMetrics run() {
        if (config.output() == null) {
            return train();
        }
        try (RunLock own = RunLock.acquire(config.output())) {
            return train();
        } catch (IOException failure) {
            throw new UncheckedIOException(failure.getMessage(), failure);
        }
    }

    /**
     * As {@link #run()}, in an output that the caller holds already and goes on holding.
     *
     * @throws IllegalArgumentException when what is held is not the output's folder
     */
    public @Nullable StepMetrics run(RunLock held) {
        if (!held.folder().equals(config.output())) {
            throw new IllegalArgumentException(
                    "expected to hold the output " + config.output() + ", found " + held.folder());
        }
        return train();
    }

    private @Nullable StepMetrics train() {
        try {
            Optional<Path> checkpoint = checkpoint();
            plan().requireFits(backend);
            model.load();
            float[] initial = adapter.parametersToHost();
            StepMetrics last;
            try (Arena arena = Arena.ofShared()) {
                Run run = new Run(arena);
                last = run.run(checkpoint);
                stepsDone = run.step;
            }
            boolean complete = stepsDone == totalSteps;
            // Warm-up begins with a rate of 0: a run that was cancelled after that step has changed nothing.
            if (last != null && (complete || last.lr() > 0)) {
                requireChanged(initial, last);
            }
            if (last != null || complete) {
                finish();
            }
            return last;
        } catch (IOException failure) {
            throw new UncheckedIOException(failure.getMessage(), failure);
        }
    }

    /** Where this run goes on, in an output where nothing is overwritten that is not its own, or mistaken for it. */
    private Optional<Path> checkpoint() throws IOException {
        if (config.output() == null) {
            return Optional.empty();
        }
        Optional<Path> latest = Checkpoints.latest(config.output());
        if (latest.isPresent() && !config.resume()) {
            throw new TrainingException(config.output() + ": expected no checkpoints of another run, found "
                    + latest.get().getFileName() + ": resume it, remove it or choose another folder");
        }
        List<String> adapterFiles = PeftAdapter.filesIn(config.output());
        if (latest.isEmpty() && !adapterFiles.isEmpty()) {
            throw new TrainingException(config.output() + ": expected no adapter of another run, found "
                    + String.join(" and ", adapterFiles) + (config.resume() ? " without a checkpoint to resume" : "")
                    + ": move it away or choose another folder");
        }
        return latest;
    }

    /** One run's buffers. */
    private final class Run {
        private final OptimizerState state;
        private final ModelPass pass;
        private final @Nullable SparseSteps sparsity;
        private final Arena arena;
        private final Map<Recording, Graph> recordings = new HashMap<>();
        private long microBatch;
        private int step;
        private int savedStep;
        private final Set<Mode> warm = EnumSet.noneOf(Mode.class);
        private long delivered;

        Run(Arena arena) {
            this.arena = arena;
            state = OptimizerState.allocate(arena, adapter, config);
            pass = model.openPass(arena, adapter, shape(), options());
            sparsity = SparseSteps.of(config, pass, totalSteps);
        }

        @Nullable
        StepMetrics run(Optional<Path> checkpoint) throws IOException {
            batches.seek(0, 0);
            if (checkpoint.isPresent()) {
                resume(checkpoint.get());
            }
            StepMetrics last = null;
            Enqueued underWay = null;
            boolean evaluated = false;
            while (step < totalSteps && !cancelled) {
                // A device computes the step under way while the next one is enqueued behind it: only then is it waited for.
                Enqueued next = enqueueStep();
                if (underWay != null) {
                    last = deliver(underWay);
                }
                underWay = next;
                boolean evaluates = config.evalEvery() > 0 && step % config.evalEvery() == 0;
                boolean saves = config.saveEvery() > 0 && step % config.saveEvery() == 0;
                if (evaluates || saves || underWay.isDone()) {
                    last = deliver(underWay);
                    underWay = null;
                }
                evaluated = evaluates;
                if (evaluates) {
                    evaluate();
                }
                if (saves) {
                    save();
                }
            }
            if (underWay != null) {
                last = deliver(underWay);
            }
            if (cancelled && savedStep < step && step < totalSteps) {
                save();
            }
            if (!evaluated && !cancelled) {
                evaluate();
            }
            return last;
        }

        private void resume(Path checkpoint) throws IOException {
            Checkpoints.State saved = Checkpoints.load(checkpoint, adapter, state.m, state.v, settings());
            step = saved.step();
            savedStep = step;
            microBatch = saved.microBatch();
            try {
                batches.seek(saved.epoch(), saved.index());
            } catch (IllegalArgumentException elsewhere) {
                throw new TrainingException(checkpoint + ": " + elsewhere.getMessage(), elsewhere);
            }
            if (sparsity != null) {
                sparsity.setTightness(saved.tightness(), saved.attentionTightness());
            }
        }

        /** A step that the device may still be computing. */
        private record Enqueued(
                int step, double lr, int supervised, int realTokens, long start, Readback loss, Readback gradNorm,
                SparseSteps.@Nullable Asked lists) {

            boolean isDone() {
                return gradNorm.isDone();
            }
        }

        /** What the operations of a micro-batch depend on. */
        private record Recording(Object signature, boolean first, boolean last) {
        }

        private Enqueued enqueueStep() {
            long start = System.nanoTime();
            // The divisor is known before the first backward pass, so that micro-batches add up to one big batch.
            List<Batch> micro = new ArrayList<>();
            int supervised = 0;
            int realTokens = 0;
            for (int i = 0; i < config.gradAccum(); i++) {
                boolean ended = batches.index() == batches.batchesPerEpoch();
                if (i > 0 && ended) {
                    break;
                }
                Batch batch = batches.next();
                micro.add(batch);
                supervised += batch.rows().length;
                realTokens += batch.realTokens();
            }
            double lr = config.lr() * config.schedule().factor(step, config.warmupSteps(), totalSteps);
            step++;
            Scalars.write(backend, state.gradScale, 1f / supervised);
            state.schedule(step, lr);
            boolean sparse = sparsity != null && sparsity.isSparse(step);
            boolean senses = sparse && sparsity.senses(step);
            for (int i = 0; i < micro.size(); i++) {
                pass.load(micro.get(i), new DropoutSeed(config.seed(), microBatch++), sparse ? Mode.SPARSE : Mode.DENSE);
                boolean last = i == micro.size() - 1;
                if (senses && last) {
                    sparsity.sense();
                }
                runMicroBatch(i == 0, last, sparse ? Mode.SPARSE : Mode.DENSE);
            }
            SparseSteps.Asked lists = sparse ? sparsity.ask(backend, senses) : null;
            Readback loss = backend.read(state.loss);
            Readback gradNorm = backend.read(state.gradNorm);
            return new Enqueued(step, lr, supervised, realTokens, start, loss, gradNorm, lists);
        }

        private void runMicroBatch(boolean first, boolean last, Mode mode) {
            Runnable operations = () -> {
                if (first) {
                    backend.run(new Fill(0, state.grad));
                    backend.run(new Fill(0, state.loss));
                }
                pass.forward();
                pass.addLossAndGradients(state.loss, state.gradScale, state.grad);
                if (last) {
                    // A norm that is not finite leaves the adapter as it is, so that nothing has to wait here.
                    state.update();
                }
            };
            // What a device does on an operation's first run, such as loading its kernels, is not recorded.
            if (!backend.isAsynchronous() || !warm.contains(mode)) {
                operations.run();
                if (last) {
                    warm.add(mode);
                }
            } else {
                recordings.computeIfAbsent(
                        new Recording(pass.signature(), first, last), key -> backend.capture(arena, operations)).launch();
            }
        }

        /** Waits for a step and tells the listeners. */
        private StepMetrics deliver(Enqueued enqueued) {
            double mean = enqueued.loss().floats()[0] / enqueued.supervised();
            if (!Double.isFinite(mean)) {
                throw new TrainingException("step " + enqueued.step() + ": expected a finite loss, found " + mean
                        + "; the last checkpoint is kept");
            }
            float norm = enqueued.gradNorm().floats()[0];
            if (!Float.isFinite(norm)) {
                throw new TrainingException("step " + enqueued.step() + ": expected a finite gradient, found a norm of "
                        + norm + "; the last checkpoint is kept");
            }
            long now = System.nanoTime();
            double ms = (now - Math.max(enqueued.start(), delivered)) / 1e6;
            delivered = now;
            SparseSteps.Asked lists = enqueued.lists();
            StepMetrics metrics = new StepMetrics(enqueued.step(), mean, enqueued.lr(), norm, enqueued.realTokens(),
                    enqueued.realTokens() / (ms / 1e3), ms, lists == null ? null : sparsity.mlp(lists),
                    lists == null ? null : sparsity.attention(lists));
            listeners.forEach(listener -> listener.onStep(metrics));
            return metrics;
        }

        private void evaluate() {
            if (evaluation != null) {
                // Whoever ends the run may not have the time that an evaluation takes.
                Evaluator.loss(backend, pass, state.loss, evaluationBatches(), () -> cancelled)
                        .ifPresent(mean -> listeners.forEach(l -> l.onEval(step, mean)));
            }
        }

        private void save() throws IOException {
            if (config.output() == null) {
                return;
            }
            Checkpoints.State reached = new Checkpoints.State(step, batches.epoch(), batches.index(), config.seed(),
                    microBatch, sparsity == null ? 0 : sparsity.mlpTightness(),
                    sparsity == null ? 0 : sparsity.attentionTightness(), settings());
            Path folder = Checkpoints.save(config.output(), adapter, baseModel(), state.m, state.v, reached);
            savedStep = step;
            listeners.forEach(l -> l.onSave(step, folder));
        }
    }

    private void requireChanged(float[] initial, StepMetrics last) {
        if (Arrays.equals(initial, adapter.parametersToHost()) && config.lr() > 0) {
            throw new TrainingException(
                    "expected an adapter that training has changed, found its initial values after step " + stepsDone
                            + ", whose rate was " + last.lr());
        }
    }

    /** Writes the adapter, reads it again and compares what it computes: a file that says something else is no result. */
    private void finish() throws IOException {
        if (config.output() == null) {
            return;
        }
        try (Arena arena = Arena.ofConfined()) {
            PeftAdapter.write(config.output(), adapter.config(), baseModel(), adapter.toHost(arena));
        }
        float[] first = probe(adapter);
        try (Arena arena = Arena.ofShared(); PeftAdapter written = PeftAdapter.read(config.output())) {
            LoraAdapter again = LoraAdapter.of(
                    backend, arena, written.config(), model.adaptableLayers(), model.peftPrefix(), written.tensors());
            float[] second = probe(again);
            for (int i = 0; i < first.length; i++) {
                if (Math.abs(first[i] - second[i]) > 1e-6f * Math.max(1, Math.abs(first[i]))) {
                    throw new TrainingException(config.output() + ": expected the adapter read again to give logit "
                            + first[i] + " for token "
                            + i + ", found " + second[i]);
                }
            }
        }
        listeners.forEach(l -> l.onSave(stepsDone, config.output()));
    }

    /** Logits after the first sample that has tokens. */
    private float[] probe(LoraAdapter with) {
        int first = 0;
        while (data.get(first).length() == 0) {
            first++;
        }
        int[] ids = data.get(first).ids();
        try (Arena arena = Arena.ofShared()) {
            return model.openCache(arena, with, ids.length).feed(ids);
        }
    }
}
