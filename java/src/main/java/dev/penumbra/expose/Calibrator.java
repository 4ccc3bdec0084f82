package dev.penumbra.expose;

import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.DataException;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.Sample;
import dev.penumbra.internal.Counted;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.NeuronNorms;
import dev.penumbra.predict.LowRankPredictor;
import dev.penumbra.predict.PredictorTrainer;
import dev.penumbra.sparse.NeuronOrder;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.function.Consumer;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * Makes a {@link Calibration}: runs a frozen model over sample text, chooses an order of neurons for each layer, trains a
 * predictor of each layer's blocks, looks at what attention does with samples that are long enough, and measures all of it on
 * text that nothing was made from.
 */
public final class Calibrator {

    /** One sample out of so many is held out, neighbours together: what follows a text is much like it. */
    private static final int HELD_OUT_PART = 5;
    /** Every so many batches run without an adapter; the others carry one. */
    private static final int PLAIN_BATCHES = 2;

    private final LanguageModel model;
    private final ModelFolder folder;
    private final CalibrationConfig config;
    private final Dataset text;
    private final Dataset heldOut;
    private final Consumer<String> progress;
    private final List<NeuronNorms> norms = new ArrayList<>();

    private Calibrator(LanguageModel model, ModelFolder folder, Dataset data, CalibrationConfig config,
            Consumer<String> progress) {
        this.model = model;
        this.folder = folder;
        this.config = config;
        this.progress = progress;
        model.requirePositions(config.seqLen());
        if (data.size() < 2) {
            throw new DataException("expected 2 samples or more to calibrate with, of which some are held out, found "
                    + data.size());
        }
        int held = Math.max(1, data.size() / HELD_OUT_PART);
        text = part(data, 0, data.size() - held);
        heldOut = part(data, data.size() - held, data.size());
        if (model.mlpNeurons() % config.blockSize() != 0) {
            throw new IllegalArgumentException("expected a block size that divides the " + model.mlpNeurons()
                    + " neurons of an MLP, found " + config.blockSize());
        }
        for (int layer = 0; layer < model.mlpLayers(); layer++) {
            if (model.neuronOrder(layer) != null) {
                throw new IllegalArgumentException(
                        "expected a model in its checkpoint's order, found another in layer " + layer);
            }
        }
    }

    private static Dataset part(Dataset data, int from, int to) {
        return new Dataset() {
            @Override
            public int size() {
                return to - from;
            }

            @Override
            public Sample get(int index) {
                return data.get(from + index);
            }

            @Override
            public String describe(int index) {
                return data.describe(from + index);
            }
        };
    }

    /**
     * Calibrates and writes the result.
     *
     * @param model loaded, in its checkpoint's order
     * @param folder the model's, open
     * @param output where {@link Calibration#FILE} goes
     * @param progress is told in a line what is under way
     * @throws DataException when there is too little text
     * @throws IllegalArgumentException when rows are longer than the model's positions, blocks do not divide the MLPs' neurons, or
     *         the model is in another order
     */
    public static Calibration calibrate(LanguageModel model, ModelFolder folder, Dataset data, CalibrationConfig config,
            Path output, Consumer<String> progress) throws IOException {
        return new Calibrator(model, folder, data, config, progress).run().write(output);
    }

    /** What a pass over some text told of each layer. */
    private record Text(List<NeuronUse> made, List<NeuronUse> held) {
    }

    private Calibration run() throws IOException {
        for (int layer = 0; layer < model.mlpLayers(); layer++) {
            norms.add(model.neuronNorms(layer));
        }
        Text use = collectUse();
        progress.accept("ordering " + model.mlpNeurons() + " neurons in each of " + Counted.of(model.mlpLayers(), "layer"));
        List<OrderChoice> choices = IntStream.range(0, model.mlpLayers()).parallel()
                .mapToObj(i -> OrderChoice.of(use.made().get(i), use.held().get(i), config)).toList();
        List<NeuronOrder> orders = choices.stream().map(OrderChoice::order).toList();
        Samples samples = collectSamples(orders);
        progress.accept("training predictors of rank " + config.rank() + " on "
                + Counted.of(samples.made().getFirst().lists(), "list")
                + " of " + config.listRows() + " tokens");
        AttentionCalibration attention = samples.attention() == null
                ? null
                : samples.attention().calibrator(model, folder, config).run(progress);
        List<LayerResult> results = IntStream.range(0, model.mlpLayers()).parallel()
                .mapToObj(i -> layer(i, choices.get(i), use, samples)).toList();
        return new Calibration(manifest(use, results, attention), results.stream().map(LayerResult::layer).toList(),
                attention,
                "unwritten");
    }

    private Text collectUse() {
        try (Arena arena = Arena.ofShared()) {
            UseCollector collector = new UseCollector(arena, model, norms, config);
            List<NeuronUse> made = uses();
            List<NeuronUse> held = uses();
            progress.accept("running the model over sample text");
            batches(text, config.batches(), (index, batches) -> collector.add(index, batches.next(), made));
            batches(heldOut, config.heldOutBatches(), (index, batches) -> collector.add(index, batches.next(), held));
            return new Text(made, held);
        }
    }

    private List<NeuronUse> uses() {
        return norms.stream().map(norm -> new NeuronUse(norm.product())).toList();
    }

    @FunctionalInterface
    private interface BatchUser {
        void use(int index, Batches batches);
    }

    /** The same batches every time. */
    private void batches(Dataset data, int most, BatchUser user) {
        Batches batches = new Batches(data, config.batchSize(), config.seqLen(), true, true, config.seed());
        int count = Math.min(most, batches.batchesPerEpoch());
        for (int i = 0; i < count; i++) {
            user.use(i, batches);
        }
    }

    /**
     * What runs with pooled inputs told.
     *
     * @param drifted the held-out text again, under random adapters
     * @param attention null where no sample is long enough
     */
    private record Samples(List<PooledUse> made, List<PooledUse> held, List<PooledUse> drifted,
            @Nullable AttentionSamples attention) {
    }

    private record AttentionSamples(int heads, AttentionUse made, AttentionUse held, AttentionUse drifted) {

        AttentionCalibrator calibrator(LanguageModel model, ModelFolder folder, CalibrationConfig config) {
            return new AttentionCalibrator(model, folder, config, heads, made, held, drifted);
        }
    }

    /** An observer of attention; null where it is not asked for, or the text has nothing to say of it. */
    private @Nullable AttentionCollector attentionCollector() {
        int size = config.attention().blockSize();
        if (size == 0) {
            return null;
        }
        int fewest = AttentionUse.FEWEST_BLOCKS * size;
        if (Math.min(longest(text), longest(heldOut)) < fewest) {
            withoutAttention();
            return null;
        }
        return new AttentionCollector(model.backend(), model.mlpLayers(), size, config.attention().poolRows(),
                config.seqLen());
    }

    private void withoutAttention() {
        int size = config.attention().blockSize();
        progress.accept("the sample text or what is held out of it has no sample of " + AttentionUse.FEWEST_BLOCKS * size
                + " tokens, two attention blocks of " + size + ": calibrating without attention");
    }

    private static int longest(Dataset data) {
        return IntStream.range(0, data.size()).map(i -> data.get(i).length()).max().orElse(0);
    }

    private Samples collectSamples(List<NeuronOrder> orders) throws IOException {
        try (Arena arena = Arena.ofShared(); AttentionCollector attention = attentionCollector()) {
            Drift drift = Drift.create(arena, model, folder, config.drift(), config.seed());
            PooledCollector collector = new PooledCollector(arena, model, drift.adapter(), orders, norms, config, attention);
            Run made = new Run(collector, attention, pooled(), new AttentionUse(model.mlpLayers()));
            Run held = new Run(collector, attention, pooled(), new AttentionUse(model.mlpLayers()));
            Run drifted = new Run(collector, attention, pooled(), new AttentionUse(model.mlpLayers()));
            progress.accept("running it again, with and without random adapters");
            batches(text, config.batches(), (index, batches) -> {
                if (index % PLAIN_BATCHES == 0) {
                    drift.none();
                } else {
                    drift.draw();
                }
                made.add(index, batches.next());
            });
            drift.none();
            batches(heldOut, config.heldOutBatches(), (index, batches) -> held.add(index, batches.next()));
            batches(heldOut, config.heldOutBatches(), (index, batches) -> {
                drift.draw();
                drifted.add(index, batches.next());
            });
            requireLists(made.pooled(), "sample text");
            requireLists(held.pooled(), "held-out text");
            return new Samples(made.pooled(), held.pooled(), drifted.pooled(), attention == null
                    ? null
                    : attentionSamples(attention.heads(), made.attention(), held.attention(), drifted.attention()));
        }
    }

    private @Nullable AttentionSamples attentionSamples(int heads, AttentionUse made, AttentionUse held,
            AttentionUse drifted) {
        if (made.isEmpty() || held.isEmpty()) {
            withoutAttention();
            return null;
        }
        return new AttentionSamples(heads, made, held, drifted);
    }

    /** Batches of one kind of text, and what they tell. */
    private record Run(PooledCollector collector, @Nullable AttentionCollector observer, List<PooledUse> pooled,
            AttentionUse attention) {

        void add(int index, Batch batch) {
            collector.add(index, batch, pooled);
            if (observer != null) {
                observer.add(index, batch, attention);
            }
        }
    }

    private void requireLists(List<PooledUse> samples, String what) {
        if (samples.getFirst().lists() == 0) {
            throw new DataException("expected " + config.listRows() + " tokens or more in a batch of the " + what
                    + ", found fewer: calibrate with more text, or larger batches");
        }
    }

    private List<PooledUse> pooled() {
        return norms.stream().map(norm -> new PooledUse(config.listRows() / config.poolRows())).toList();
    }

    private record LayerResult(Calibration.Layer layer, Manifest.Layer figures) {
    }

    private LayerResult layer(int i, OrderChoice choice, Text use, Samples samples) {
        NeuronUse made = use.made().get(i);
        NeuronUse held = use.held().get(i);
        LowRankPredictor predictor = train(samples.made().get(i), samples.held().get(i), samples.drifted().get(i));
        LowRankPredictor lowRank;
        try {
            lowRank = FirstLayerSvd.predictor(model, folder, i, norms.get(i), choice.order(), config);
        } catch (IOException failure) {
            throw new UncheckedIOException(failure);
        }
        Calibration.Layer layer = new Calibration.Layer(choice.order(), choice.order().apply(made.meanMass()),
                choice.order().apply(made.meanFired()), predictor, lowRank,
                Curves.of(held, choice.order(), config.blockSize()));
        LayerFigures figures = new LayerFigures(config, choice, made, held, predictor, lowRank);
        return new LayerResult(layer, figures.of(reported(samples.held().get(i)), reported(samples.drifted().get(i))));
    }

    /** Half of the held-out text judges predictors on the way, the other half is what figures are measured on. */
    private static PooledUse reported(PooledUse held) {
        PooledUse half = held.half(1);
        return half.lists() == 0 ? held : half;
    }

    private LowRankPredictor train(PooledUse made, PooledUse held, PooledUse drifted) {
        PredictorTrainer.Settings settings = new PredictorTrainer.Settings(config.rank(), config.poolRows(),
                made.poolsPerList(), config.epochs(), config.noise(), config.seed());
        LayerFigures.Judge plain = new LayerFigures.Judge(held.half(0), config);
        LayerFigures.Judge moved = new LayerFigures.Judge(drifted.half(0), config);
        return PredictorTrainer.train(made.inputs(), made.masses(), settings,
                candidate -> plain.covered(candidate) + moved.covered(candidate));
    }

    private Manifest manifest(Text use, List<LayerResult> results, @Nullable AttentionCalibration attention) {
        return new Manifest(Calibration.VERSION,
                String.valueOf(folder.directory().toAbsolutePath().normalize().getFileName()),
                folder.weightsHash(), results.getFirst().layer().predictor().hidden(), model.mlpNeurons(),
                config.blockSize(),
                config.listRows(), config.poolRows(), config.rank(), config.coverage(), config.budget(), config.seqLen(),
                config.batchSize(), config.seed(), use.made().getFirst().tokens(), use.held().getFirst().tokens(),
                results.stream().map(LayerResult::figures).toList(), attention == null ? null : attention.figures());
    }

    /** Which order a layer takes, and what the others would have given. */
    record OrderChoice(String name, NeuronOrder order, List<Manifest.Order> tried) {

        static OrderChoice of(NeuronUse made, NeuronUse held, CalibrationConfig config) {
            NeuronClustering activations = new NeuronClustering(List.of(made.masses()), made.meanMass(), config.blockSize());
            NeuronClustering both = new NeuronClustering(List.of(made.masses(), made.gradientMasses()), made.meanMass(),
                    config.blockSize());
            List<OrderChoice> candidates = List.of(
                    new OrderChoice("checkpoint", NeuronOrder.identity(made.neurons()), List.of()),
                    new OrderChoice("mass", activations.byWeight(), List.of()),
                    new OrderChoice("co-activation", activations.clustered(), List.of()),
                    new OrderChoice("co-activation and gradients", both.clustered(), List.of()));
            List<Manifest.Order> tried = candidates.stream().map(candidate -> candidate.figures(held, config)).toList();
            int best = IntStream.range(0, tried.size()).boxed()
                    .max(Comparator.comparingDouble(i -> tried.get(i).mass() + tried.get(i).gradient())).orElseThrow();
            return new OrderChoice(candidates.get(best).name(), candidates.get(best).order(), tried);
        }

        private Manifest.Order figures(NeuronUse held, CalibrationConfig config) {
            int kept = config.kept(order.neurons() / config.blockSize());
            return new Manifest.Order(name,
                    BlockMasses.of(held.masses(), order, config.blockSize()).oracle(kept),
                    BlockMasses.of(held.gradientMasses(), order, config.blockSize()).oracle(kept));
        }
    }
}
