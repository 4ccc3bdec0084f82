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
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.AttentionExposure;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.AttentionSparsity;
import dev.penumbra.predict.MlpExposure;
import dev.penumbra.predict.MlpSparsity;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import dev.penumbra.train.AttentionPlanner;
import dev.penumbra.train.Evaluator;
import dev.penumbra.train.SparsityPlanner;
import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.StepSparsity;
import dev.penumbra.train.TrainConfig;
import dev.penumbra.train.Trainer;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.function.Function;
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
                .warmupSteps(Math.min(WARMUP, steps / 4)).seed(seed).sparsity(sparsity)
                .attention(quality.attention().config(0)).build();
        List<StepMetrics> metrics = new ArrayList<>();
        new Trainer(penumbra.model(), adapter, config, tune, null).exposure(exposure(quality))
                .attentionExposure(attentionExposure()).listener(metrics::add).run();
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
        row.put("kept", mean(metrics, StepMetrics::sparsity, StepSparsity::meanKept, 1));
        row.put("cut", mean(metrics, StepMetrics::sparsity, StepSparsity::meanCut, 0));
        Quality.Attention attention = quality.attention();
        if (!attention.isDense()) {
            ObjectNode told = row.putObject("attention");
            told.put("policy", attention.policy().word());
            told.put("pass", attention.pass().name().toLowerCase(java.util.Locale.ROOT));
            told.put("coverage", attention.coverage());
            told.put("budget", attention.budget());
            told.put("kept", mean(metrics, StepMetrics::attention, StepSparsity::meanKept, 1));
        }
        row.put("step_ms", Results.rounded(median(metrics.stream().skip(steps / 2).mapToDouble(StepMetrics::stepMs))));
        if (measures && !quality.isDense()) {
            LoraAdapter fresh = penumbra.newAdapter(LORA, seed);
            if (quality.policy() != SelectionPolicy.OFF && attention.isDense()) {
                row.set("before", measured(quality, fresh));
                row.set("after", measured(quality, adapter));
            } else if (quality.policy() == SelectionPolicy.OFF) {
                ((ObjectNode) row.get("attention")).set("before", measuredAttention(quality, fresh));
                ((ObjectNode) row.get("attention")).set("after", measuredAttention(quality, adapter));
            }
            ArrayNode cosines = row.putArray("gradient_cosine");
            for (double cosine : cosines(quality, adapter)) {
                cosines.add(cosine);
            }
        }
        return row;
    }

    private static double mean(List<StepMetrics> metrics, Function<StepMetrics, @Nullable StepSparsity> lists,
            java.util.function.ToDoubleFunction<StepSparsity> figure, double none) {
        return metrics.stream().map(lists).filter(Objects::nonNull).mapToDouble(figure).average().orElse(none);
    }

    private SparsityConfig config(Quality quality, int senseEvery) {
        return quality.config(q -> subject.calibration().equalCoverage(q.block(), q.pass(), q.budget(), q.rowsPerList()),
                senseEvery);
    }

    private PassShape shape() {
        return PassShape.ofRows(batchSize, seqLen, true);
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
        Lists lists = lists(PassOptions.sparse(own), ModelPass::blockChoice, adapter);
        SparsityConfig c = own.config();
        SparsityConfig oracle = new SparsityConfig(SelectionPolicy.ORACLE, c.pass(), 1, 0.5, c.blockSize(), c.rowsPerList(),
                c.denseWarmup(), 1, false);
        List<MlpSparsity.Layer> layers = new ArrayList<>();
        for (int i = 0; i < own.layers().size(); i++) {
            MlpSparsity.Layer layer = own.layers().get(i);
            int capacity = Math.clamp(Math.round(lists.kept()[i] * own.blocks()), 1, own.blocks());
            layers.add(new MlpSparsity.Layer(capacity, 1, null, null, layer.activationNorms(), layer.gradientNorms()));
        }
        return beside(lists, lists(PassOptions.sparse(new MlpSparsity(oracle, own.neurons(), layers)),
                ModelPass::blockChoice, adapter));
    }

    /** The same of attention's lists. */
    private ObjectNode measuredAttention(Quality quality, LoraAdapter adapter) {
        AttentionSparsity own = attentionPlan(quality, 1);
        Lists lists = lists(PassOptions.sparse(null, own), ModelPass::attentionChoice, adapter);
        AttentionConfig c = own.config();
        AttentionConfig oracle = new AttentionConfig(AttentionPolicy.ORACLE, c.pass(), 1, 0.5, c.blockSize(),
                c.denseWarmup(), 1, false);
        List<AttentionSparsity.Layer> layers = new ArrayList<>();
        for (int i = 0; i < own.layers().size(); i++) {
            AttentionSparsity.Layer layer = own.layers().get(i);
            // Heads that need more get more where the policy's own budgets say so; else all keep the same.
            float[] budgets = new float[own.heads()];
            double mean = layer.budgets() == null ? 1 : mean(layer.budgets());
            for (int h = 0; h < budgets.length; h++) {
                double own1 = layer.budgets() == null ? 1 : layer.budgets()[h];
                budgets[h] = (float) Math.clamp(lists.kept()[i] * own1 / mean + 1e-6, 1e-6, 1);
            }
            layers.add(new AttentionSparsity.Layer(false, 1, budgets, null, null));
        }
        return beside(lists, lists(PassOptions.sparse(null, new AttentionSparsity(oracle, own.heads(), own.width(), layers)),
                ModelPass::attentionChoice, adapter));
    }

    private static double mean(float[] values) {
        double sum = 0;
        for (float value : values) {
            sum += value;
        }
        return sum / values.length;
    }

    private static ObjectNode beside(Lists lists, Lists best) {
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

    private Lists lists(PassOptions options, Function<ModelPass, @Nullable BlockChoice> choices, LoraAdapter adapter) {
        int layers = subject.penumbra().model().mlpLayers();
        Lists lists = new Lists(new double[layers], new double[layers]);
        List<Batch> batches = heldBatches();
        try (Arena arena = Arena.ofShared()) {
            Gradients gradients = new Gradients(arena, adapter, options);
            BlockChoice choice = choices.apply(gradients.pass);
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

    private AttentionSparsity attentionPlan(Quality quality, int senseEvery) {
        return AttentionPlanner.plan(subject.penumbra().model(), quality.attention().config(senseEvery), seqLen,
                attentionExposure());
    }

    private @Nullable AttentionExposure attentionExposure() {
        return subject.calibration() == null ? null : subject.calibration().attention().orElse(null);
    }

    private PassOptions options(Quality quality) throws IOException {
        return PassOptions.sparse(quality.policy() == SelectionPolicy.OFF ? null : plan(quality, 0),
                quality.attention().isDense() ? null : attentionPlan(quality, 0));
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
            Gradients gradients = new Gradients(arena, adapter, options(quality));
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

        Gradients(Arena arena, LoraAdapter adapter, PassOptions options) {
            pass = subject.penumbra().model().openPass(arena, adapter, shape(), options);
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
