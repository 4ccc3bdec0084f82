package dev.penumbra.jmh;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.expose.Calibration;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.BlockChoice;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import dev.penumbra.train.Evaluator;
import dev.penumbra.train.SparsityPlanner;
import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.TrainConfig;
import dev.penumbra.train.Trainer;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.DoubleStream;
import org.jspecify.annotations.Nullable;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/** Tunes adapters on one model, as its neurons lie, and judges them by the dense model. */
final class QualityRun {

    private static final LoraConfig LORA = LoraConfig.ofRank(8);
    private static final double LR = 2e-3;
    private static final int WARMUP = 20;
    /** Batches of held-out text that coverage and gradients are measured on. */
    private static final int MEASURED_BATCHES = 4;

    /** @param calibration null: the model is in its checkpoint's order, and policies have none */
    private record Subject(Penumbra penumbra, @Nullable Calibration calibration) {
    }

    private final Subject subject;
    private final Dataset tune;
    private final Dataset held;
    private final int steps;
    private final int batchSize;
    private final int seqLen;

    QualityRun(Penumbra penumbra, @Nullable Calibration calibration, Dataset tune, Dataset held, int steps, int batchSize,
            int seqLen) {
        this.subject = new Subject(penumbra, calibration);
        this.tune = tune;
        this.held = held;
        this.steps = steps;
        this.batchSize = batchSize;
        this.seqLen = seqLen;
    }

    double untuned() {
        return Evaluator.loss(subject.penumbra().model(), null, held, batchSize, seqLen);
    }

    /** Tunes with one seed; {@code measures} adds the figures that take passes of their own. */
    ObjectNode row(Quality quality, int seed, boolean measures) throws IOException {
        Penumbra penumbra = subject.penumbra();
        SparsityConfig sparsity = config(quality, 0);
        LoraAdapter adapter = penumbra.newAdapter(LORA, seed);
        TrainConfig config = TrainConfig.builder().steps(steps).batchSize(batchSize).seqLen(seqLen).lr(LR)
                .warmupSteps(Math.min(WARMUP, steps / 4)).seed(seed).sparsity(sparsity).build();
        List<StepMetrics> metrics = new ArrayList<>();
        new Trainer(penumbra.model(), adapter, config, tune, null).exposure(exposure(quality)).listener(metrics::add).run();
        ObjectNode row = Results.object();
        row.put("key", quality.key());
        row.put("policy", quality.policy().word());
        row.put("pass", quality.pass().name().toLowerCase(java.util.Locale.ROOT));
        row.put("block", quality.block());
        row.put("rows_per_list", quality.rowsPerList());
        row.put("coverage", sparsity.coverage());
        row.put("budget", quality.budget());
        row.put("ordered", quality.ordered());
        row.put("spread", quality.spread().words);
        row.put("seed", seed);
        row.put("steps", steps);
        row.put("dense_eval", Evaluator.loss(penumbra.model(), adapter, held, batchSize, seqLen));
        row.put("last_train_loss",
                metrics.stream().skip(steps * 9L / 10).mapToDouble(StepMetrics::loss).average().orElse(0));
        List<StepMetrics> sparse = metrics.stream().filter(m -> m.sparsity() != null).toList();
        row.put("kept", sparse.stream().mapToDouble(m -> m.sparsity().meanKept()).average().orElse(1));
        row.put("cut", sparse.stream().mapToDouble(m -> m.sparsity().meanCut()).average().orElse(0));
        row.put("step_ms", Results.rounded(median(metrics.stream().skip(steps / 2).mapToDouble(StepMetrics::stepMs))));
        if (measures && quality.policy() != SelectionPolicy.OFF) {
            LoraAdapter fresh = penumbra.newAdapter(LORA, seed);
            row.set("before", measured(quality, fresh));
            row.set("after", measured(quality, adapter));
            ArrayNode cosines = row.putArray("gradient_cosine");
            for (double cosine : cosines(quality, adapter)) {
                cosines.add(cosine);
            }
        }
        return row;
    }

    private SparsityConfig config(Quality quality, int senseEvery) {
        return quality.config(q -> subject.calibration().equalCoverage(q.block(), q.pass(), q.budget(), q.rowsPerList()),
                senseEvery);
    }

    private PassShape shape() {
        return new PassShape(Math.multiplyExact(batchSize, seqLen), seqLen, true);
    }

    private List<Batch> heldBatches() {
        Batches batches = new Batches(held, batchSize, seqLen, true, false, 0);
        List<Batch> result = new ArrayList<>();
        for (int i = 0; i < Math.min(MEASURED_BATCHES, batches.batchesPerEpoch()); i++) {
            result.add(batches.next());
        }
        return result;
    }

    /** What a policy's lists hold of the true mass, and what the best ones of the same size would, layer by layer. */
    private ObjectNode measured(Quality quality, LoraAdapter adapter) throws IOException {
        MlpSparsity own = plan(quality, 1);
        Lists lists = lists(own, adapter);
        SparsityConfig c = own.config();
        SparsityConfig oracle = new SparsityConfig(SelectionPolicy.ORACLE, c.pass(), 1, 0.5, c.blockSize(), c.rowsPerList(),
                c.denseWarmup(), 1, false);
        List<MlpSparsity.Layer> layers = new ArrayList<>();
        for (int i = 0; i < own.layers().size(); i++) {
            MlpSparsity.Layer layer = own.layers().get(i);
            int capacity = Math.clamp(Math.round(lists.kept()[i] * own.blocks()), 1, own.blocks());
            layers.add(new MlpSparsity.Layer(capacity, 1, null, null, layer.activationNorms(), layer.gradientNorms()));
        }
        Lists best = lists(new MlpSparsity(oracle, own.neurons(), layers), adapter);
        ObjectNode measured = Results.object();
        measured.put("true_coverage", mean(lists.covered()));
        measured.put("kept", mean(lists.kept()));
        measured.put("oracle_coverage", mean(best.covered()));
        return measured;
    }

    private static double mean(double[] values) {
        return Arrays.stream(values).average().orElse(1);
    }

    /** By layer, over batches: the part of the true mass that lists cover, and the part of the blocks that they hold. */
    @SuppressWarnings("ArrayRecordComponent")
    private record Lists(double[] covered, double[] kept) {
    }

    private Lists lists(MlpSparsity sparsity, LoraAdapter adapter) {
        int layers = sparsity.layers().size();
        Lists lists = new Lists(new double[layers], new double[layers]);
        List<Batch> batches = heldBatches();
        try (Arena arena = Arena.ofShared()) {
            Gradients gradients = new Gradients(arena, adapter, sparsity);
            BlockChoice choice = gradients.pass.blockChoice();
            for (Batch batch : batches) {
                gradients.pass.load(batch, new ModelPass.DropoutSeed(1, 0), Mode.SPARSE);
                gradients.pass.sense();
                gradients.run(batch);
                double[] covered = choice.coverage();
                float[] summaries = download(gradients.backend, choice.summaries());
                for (int i = 0; i < layers; i++) {
                    lists.covered()[i] += covered[i] / batches.size();
                    lists.kept()[i] += (choice.isSparse(i) ? summaries[i * SelectBlocks.SUMMARY_SIZE] : 1.0)
                            / batches.size();
                }
            }
        }
        return lists;
    }

    private MlpSparsity plan(Quality quality, int senseEvery) throws IOException {
        return SparsityPlanner.plan(subject.penumbra().model(), config(quality, senseEvery), exposure(quality));
    }

    private @Nullable MlpExposure exposure(Quality quality) {
        return quality.spread() == Quality.Spread.TAPERED
                ? new TaperedBudgets(subject.calibration(), quality.budget(), SparsityPlanner.HEADROOM)
                : subject.calibration();
    }

    /** By layer, the cosine between the adapter's gradient and the dense one, on held-out text. */
    private double[] cosines(Quality quality, LoraAdapter adapter) throws IOException {
        int layers = subject.penumbra().model().mlpLayers();
        double[] cosines = new double[layers];
        List<Batch> batches = heldBatches();
        try (Arena arena = Arena.ofShared()) {
            Gradients gradients = new Gradients(arena, adapter, plan(quality, 0));
            for (Batch batch : batches) {
                float[] dense = gradients.of(batch, Mode.DENSE);
                float[] sparse = gradients.of(batch, Mode.SPARSE);
                for (int layer = 0; layer < layers; layer++) {
                    cosines[layer] += cosine(adapter, layer, dense, sparse) / batches.size();
                }
            }
        }
        return cosines;
    }

    private static double cosine(LoraAdapter adapter, int layer, float[] left, float[] right) {
        double product = 0;
        double leftSquare = 0;
        double rightSquare = 0;
        for (Site site : adapter.sites()) {
            if (site.layer().layer() == layer) {
                int from = Math.toIntExact(site.offsetA());
                int to = Math.toIntExact(site.offsetB() + (long) site.layer().out() * site.r());
                for (int i = from; i < to; i++) {
                    product += (double) left[i] * right[i];
                    leftSquare += (double) left[i] * left[i];
                    rightSquare += (double) right[i] * right[i];
                }
            }
        }
        return product / Math.sqrt(Math.max(leftSquare * rightSquare, Double.MIN_NORMAL));
    }

    private static float[] download(Backend backend, Tensor device) {
        try (Arena arena = Arena.ofConfined()) {
            Tensor host = Tensor.allocate(arena, device.dtype(), device.shape());
            backend.download(device, host);
            return host.toFloats();
        }
    }

    private static double median(DoubleStream values) {
        double[] sorted = values.sorted().toArray();
        return sorted.length == 0 ? 0 : sorted[sorted.length / 2];
    }

    /** A sparse training pass and what it adds gradients to. */
    private final class Gradients {
        private final Backend backend = subject.penumbra().model().backend();
        private final ModelPass pass;
        private final Tensor loss;
        private final Tensor scale;
        private final Tensor grad;

        Gradients(Arena arena, LoraAdapter adapter, MlpSparsity sparsity) {
            pass = subject.penumbra().model().openPass(arena, adapter, shape(), PassOptions.sparse(sparsity));
            loss = backend.allocate(arena, DType.F32, Shape.of(1));
            scale = backend.allocate(arena, DType.F32, Shape.of(1));
            grad = backend.allocate(arena, DType.F32, adapter.parameters().shape());
        }

        float[] of(Batch batch, Mode mode) {
            pass.load(batch, new ModelPass.DropoutSeed(1, 0), mode);
            run(batch);
            return download(backend, grad);
        }

        /** Forward and backward of the loaded batch. */
        void run(Batch batch) {
            backend.run(new Fill(1f / batch.rows().length, scale));
            backend.run(new Fill(0, grad));
            backend.run(new Fill(0, loss));
            pass.forward();
            pass.addLossAndGradients(loss, scale, grad);
        }
    }
}
