package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Graph;
import dev.penumbra.backend.Readback;
import dev.penumbra.backend.op.AdamW;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.DropoutSeed;
import dev.penumbra.model.PassShape;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Tunes an adapter. A run is a function of model, adapter, data, configuration and threads: equal ones give equal bits.
 *
 * <p>The gradient of a step is the mean over all supervised tokens of its micro-batches, however they are divided.
 */
public final class Trainer {

    private static final float BETA1 = 0.9f;
    private static final float BETA2 = 0.999f;
    private static final float EPSILON = 1e-8f;

    private final LanguageModel model;
    private final LoraAdapter adapter;
    private final TrainConfig config;
    private final Dataset data;
    private final @Nullable Dataset evaluation;
    private final Backend backend;
    private final Batches batches;
    private final int totalSteps;
    private final List<StepListener> listeners = new ArrayList<>();
    private volatile boolean cancelled;

    /** @param evaluation data whose loss is told to listeners, or null */
    public Trainer(LanguageModel model, LoraAdapter adapter, TrainConfig config, Dataset data,
            @Nullable Dataset evaluation) {
        if (config.seqLen() > model.maxPositions()) {
            throw new IllegalArgumentException("expected a sequence length of at most " + model.maxPositions()
                    + ", the model's positions, found " + config.seqLen());
        }
        this.model = model;
        this.adapter = adapter;
        this.config = config;
        this.data = data;
        this.evaluation = evaluation;
        this.backend = model.backend();
        batches = new Batches(data, config.batchSize(), config.seqLen(), config.pack(), config.shuffle(), config.seed());
        totalSteps = config.steps() > 0
                ? config.steps()
                : Math.multiplyExact(config.epochs(), Math.ceilDiv(batches.batchesPerEpoch(), config.gradAccum()));
    }

    public Trainer listener(StepListener listener) {
        listeners.add(listener);
        return this;
    }

    /** Optimizer steps of the whole run. */
    public int totalSteps() {
        return totalSteps;
    }

    /** Ends the run after the steps under way, with a checkpoint; from any thread. */
    public void cancel() {
        cancelled = true;
    }

    private PassShape shape() {
        return new PassShape(Math.multiplyExact(config.batchSize(), config.seqLen()), config.seqLen(), true);
    }

    /** Everything that a run holds: what is resident, and what {@link #run} allocates before its first step. */
    public MemoryPlan plan() {
        MemoryPlan plan = new MemoryPlan();
        model.describeWeights(plan);
        plan.addResident(MemoryPlan.Kind.ADAPTER, "adapter", adapter.byteSize());
        plan.add(MemoryPlan.Kind.OPTIMIZER, "gradients", adapter.byteSize());
        plan.add(MemoryPlan.Kind.OPTIMIZER, "m", adapter.byteSize());
        plan.add(MemoryPlan.Kind.OPTIMIZER, "v", adapter.byteSize());
        model.planPass(plan, adapter, shape());
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
                + " samples=" + data.size() + " dtype=" + model.dtype();
    }

    /**
     * Trains to the last step, or until {@link #cancel}.
     *
     * @return metrics of the last step, or null when there was none left to do
     * @throws TrainingException when a loss or gradient is not finite, naming the step; checkpoints before it stay
     */
    public @Nullable StepMetrics run() {
        plan().requireFits(backend);
        try (Arena arena = Arena.ofShared()) {
            return new Run(arena).run();
        } catch (IOException failure) {
            throw new UncheckedIOException(failure.getMessage(), failure);
        }
    }

    /** One run's buffers. */
    private final class Run {
        private final Tensor grad;
        private final Tensor m;
        private final Tensor v;
        private final Tensor schedule;
        private final Tensor gradNorm;
        private final Tensor loss;
        private final Tensor gradScale;
        private final @Nullable Tensor workspace;
        private final ModelPass pass;
        private final Arena arena;
        private final Map<Recording, Graph> recordings = new HashMap<>();
        private long microBatch;
        private int step;
        private boolean warm;
        private long delivered;

        Run(Arena arena) {
            this.arena = arena;
            Shape n = adapter.parameters().shape();
            grad = backend.allocate(arena, DType.F32, n);
            m = backend.allocate(arena, DType.F32, n);
            v = backend.allocate(arena, DType.F32, n);
            schedule = backend.allocate(arena, DType.F32, Shape.of(3));
            gradNorm = backend.allocate(arena, DType.F32, Shape.of(1));
            loss = backend.allocate(arena, DType.F32, Shape.of(1));
            gradScale = backend.allocate(arena, DType.F32, Shape.of(1));
            long bytes = backend.workspaceBytes(update(null));
            workspace = bytes == 0 ? null : backend.allocate(arena, DType.U8, Shape.of(bytes));
            pass = model.openPass(arena, adapter, shape());
        }

        @Nullable
        StepMetrics run() throws IOException {
            float[] initial = adapter.parametersToHost();
            resume();
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
            if (cancelled && step < totalSteps) {
                save();
            }
            if (!evaluated && !cancelled) {
                evaluate();
            }
            if (last != null) {
                finish(initial);
            }
            return last;
        }

        private void resume() throws IOException {
            if (!config.resume() || config.output() == null) {
                return;
            }
            Optional<Path> latest = Checkpoints.latest(config.output());
            if (latest.isEmpty()) {
                return;
            }
            Checkpoints.State state = Checkpoints.load(latest.get(), adapter, m, v);
            if (!state.settings().equals(settings())) {
                throw new TrainingException(latest.get() + ": expected a checkpoint of a run with " + settings() + ", found "
                        + state.settings());
            }
            step = state.step();
            microBatch = state.microBatch();
            batches.seek(state.epoch(), state.index());
        }

        /** A step that the device may still be computing. */
        private record Enqueued(
                int step, double lr, int supervised, int realTokens, long start, Readback loss, Readback gradNorm) {

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
            int epoch = batches.epoch();
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
            if (supervised == 0) {
                throw new TrainingException("step " + step + ": expected supervised tokens, found none in epoch " + epoch);
            }
            Scalars.write(backend, gradScale, 1f / supervised);
            Scalars.write(backend, schedule, (float) lr, (float) (1 - Math.pow(BETA1, step)),
                    (float) (1 - Math.pow(BETA2, step)));
            for (int i = 0; i < micro.size(); i++) {
                pass.load(micro.get(i), new DropoutSeed(config.seed(), microBatch++));
                runMicroBatch(i == 0, i == micro.size() - 1);
            }
            return new Enqueued(step, lr, supervised, realTokens, start, backend.read(loss), backend.read(gradNorm));
        }

        private void runMicroBatch(boolean first, boolean last) {
            Runnable operations = () -> {
                if (first) {
                    backend.run(new Fill(0, grad));
                    backend.run(new Fill(0, loss));
                }
                pass.forward();
                pass.addLossAndGradients(loss, gradScale, grad);
                if (last) {
                    // A norm that is not finite leaves the adapter as it is, so that nothing has to wait here.
                    backend.run(update(workspace));
                }
            };
            // What a device does on an operation's first run, such as loading its kernels, is not recorded.
            if (!backend.isAsynchronous() || !warm) {
                operations.run();
                warm = warm || last;
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
            StepMetrics metrics = new StepMetrics(enqueued.step(), mean, enqueued.lr(), norm, enqueued.realTokens(),
                    enqueued.realTokens() / (ms / 1e3), ms);
            listeners.forEach(listener -> listener.onStep(metrics));
            return metrics;
        }

        private AdamW update(@Nullable Tensor scratch) {
            return new AdamW(
                    adapter.parameters(), grad, m, v, BETA1, BETA2, EPSILON, (float) config.weightDecay(),
                    (float) config.clip(), schedule, gradNorm,
                    scratch);
        }

        private void evaluate() {
            if (evaluation != null) {
                double mean = Evaluator.loss(backend, pass, loss, evaluation, config.batchSize(), config.seqLen());
                listeners.forEach(l -> l.onEval(step, mean));
            }
        }

        private void save() throws IOException {
            if (config.output() == null) {
                return;
            }
            Checkpoints.State state = new Checkpoints.State(step, batches.epoch(), batches.index(), config.seed(),
                    microBatch, settings());
            Path folder = Checkpoints.save(config.output(), adapter, config.baseModel(), m, v, state);
            listeners.forEach(l -> l.onSave(step, folder));
        }

        /** Writes the adapter, reads it again and compares what it computes: a file that says something else is no result. */
        private void finish(float[] initial) throws IOException {
            float[] trained = adapter.parametersToHost();
            if (Arrays.equals(initial, trained) && config.lr() > 0) {
                throw new TrainingException(
                        "expected an adapter that training has changed, found its initial values after step " + step);
            }
            if (config.output() == null) {
                return;
            }
            try (Arena arena = Arena.ofConfined()) {
                PeftAdapter.write(config.output(), adapter.config(), config.baseModel(), adapter.toHost(arena));
            }
            Tensor expected = probe(adapter);
            try (Arena arena = Arena.ofShared(); PeftAdapter written = PeftAdapter.read(config.output())) {
                LoraAdapter again = LoraAdapter.of(
                        backend, arena, written.config(), model.adaptableLayers(), model.peftPrefix(), written.tensors());
                float[] first = expected.toFloats();
                float[] second = probe(again).toFloats();
                for (int i = 0; i < first.length; i++) {
                    if (Math.abs(first[i] - second[i]) > 1e-6f * Math.max(1, Math.abs(first[i]))) {
                        throw new TrainingException(config.output() + ": expected the adapter read again to give logit "
                                + first[i] + " for token "
                                + i + ", found " + second[i]);
                    }
                }
            }
            listeners.forEach(l -> l.onSave(step, config.output()));
        }

        /** Logits after the start of the first sample. */
        private Tensor probe(LoraAdapter with) {
            int[] ids = data.get(0).ids();
            try (Arena arena = Arena.ofShared()) {
                float[] logits = model.openCache(arena, with, ids.length).feed(ids);
                return Tensor.of(Arena.ofAuto(), logits);
            }
        }
    }
}
