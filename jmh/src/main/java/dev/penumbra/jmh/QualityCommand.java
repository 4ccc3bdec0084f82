package dev.penumbra.jmh;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.JsonlOptions;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.data.JsonlReader;
import dev.penumbra.data.Sample;
import dev.penumbra.expose.Calibration;
import dev.penumbra.expose.CalibrationConfig;
import dev.penumbra.expose.Calibrator;
import dev.penumbra.expose.Manifest;
import dev.penumbra.io.AtomicFiles;
import dev.penumbra.tensor.DType;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.SerializationFeature;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/** What skipping costs in quality: a model that is really trained, tuned under every policy, judged dense. */
@Command(name = "quality", description = "Train a ReLU model for real, calibrate it, tune it under each policy and budget with several seeds, and compare the dense loss of the adapters. Goes on where it was ended.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class QualityCommand implements Callable<Integer> {

    /** Text that a calibration is made from. */
    enum Text {
        PRETRAIN, TUNE, BOTH
    }

    /** Ways to tune. */
    enum Part {
        MLP, ATTENTION
    }

    @Option(names = "--part", defaultValue = "MLP", description = "What is skipped: blocks of the MLPs' neurons, or of attention's keys, alone and with the MLPs' (${COMPLETION-CANDIDATES}).")
    private Part part;
    @Option(names = "--work", required = true, paramLabel = "DIR", description = "Where model and texts are, or will be.")
    private Path work;
    @Option(names = "--device", defaultValue = "CPU", description = "${COMPLETION-CANDIDATES}")
    private Device.Kind device;
    @Option(names = "--threads", defaultValue = "0", description = "CPU threads; 0: all.")
    private int threads;
    @Option(names = "--shape", defaultValue = "opt-125m", description = "Of the model that is trained: opt-125m or tiny.")
    private String shape;
    @Option(names = "--train-seconds", defaultValue = "420", description = "Most for reading text, compiling and training the model.")
    private int trainSeconds;
    @Option(names = "--train-options", defaultValue = "", description = "More options of quality/train_relu.py, in one word.")
    private String trainOptions;
    @Option(names = "--seq-len", defaultValue = "1024", description = "Tokens of a row; of longer samples the first so many.")
    private int seqLen;
    @Option(names = "--train-seq-len", paramLabel = "N", description = "Tokens of a row that the model is trained on, and most that it takes. Default: --seq-len.")
    private @Nullable Integer trainSeqLen;
    @Option(names = "--batch-size", defaultValue = "4", description = "Rows of a step.")
    private int batchSize;
    @Option(names = "--steps", defaultValue = "260", description = "Of each tuning.")
    private int steps;
    @Option(names = "--seeds", defaultValue = "3", description = "Of each way to tune; all of the first before the second.")
    private int seeds;
    @Option(names = "--calibrate-on", defaultValue = "BOTH", description = "${COMPLETION-CANDIDATES}")
    private Text calibrateOn;
    @Option(names = "--only", defaultValue = "", paramLabel = "REGEX", description = "Only ways to tune whose key has this; dense always.")
    private String only;
    @Option(names = "--limit-seconds", defaultValue = "1000000", description = "No tuning begins later.")
    private int limitSeconds;
    @Option(names = "--record", description = "Write jmh/results/quality.json and quality.md too, or quality-attention-<tokens>'s.")
    private boolean record;
    @Spec
    private CommandSpec spec;

    /** More bring predictors no nearer to the best choice here. */
    private static final int EPOCHS = 4;

    private static final JsonMapper JSON = JsonMapper.builder().enable(SerializationFeature.INDENT_OUTPUT).build();

    private final long began = System.nanoTime();

    @Override
    public Integer call() throws Exception {
        if (!Files.exists(work.resolve("train.json"))) {
            train();
        }
        Path rowsFile = work.resolve("rows-" + name() + "-" + calibrateOn.name().toLowerCase(Locale.ROOT) + "-" + steps
                + "-" + batchSize + "x" + seqLen + ".json");
        Path model = work.resolve("model");
        Device on = new Device(device, 0);
        ObjectNode report;
        try (Penumbra unordered = Penumbra.load(model, on, threads, DType.BF16)) {
            report = Files.exists(rowsFile) ? (ObjectNode) JSON.readTree(Files.readString(rowsFile)) : newReport(unordered);
            Calibration calibration = calibration(unordered);
            report.set("calibration", summary(calibration.manifest()));
            try (Penumbra ordered = Penumbra.open(model, on, threads, DType.BF16, calibration.orders())) {
                ordered.model().load();
                Dataset tune = samples("tune.jsonl", ordered);
                Dataset held = samples("held.jsonl", ordered);
                QualityRun inOrder = new QualityRun(ordered, calibration, tune, held, steps, batchSize, seqLen);
                QualityRun asStored = new QualityRun(unordered, null, tune, held, steps, batchSize, seqLen);
                if (!report.has("untuned_eval")) {
                    report.put("untuned_eval", inOrder.untuned());
                }
                runAll(report, rowsFile, inOrder, asStored);
            }
        }
        String table = QualityTable.of(report);
        Files.writeString(work.resolve(name() + ".md"), table);
        System.out.println(table);
        if (record) {
            Results.write(name(), report);
            Files.writeString(Results.module().resolve("results/" + name() + ".md"), table);
        }
        return 0;
    }

    private String name() {
        return part == Part.MLP ? "quality" : "quality-attention-" + seqLen;
    }

    private void train() throws IOException, InterruptedException {
        List<String> command = new ArrayList<>(List.of(System.getenv().getOrDefault("PENUMBRA_PYTHON", "python3"),
                Results.module().resolve("quality/train_relu.py").toString(), "--output", work.toString(), "--shape", shape,
                "--device", device.name().toLowerCase(Locale.ROOT), "--seconds", "" + trainSeconds, "--seq-len",
                "" + (trainSeqLen == null ? seqLen : trainSeqLen)));
        if (!trainOptions.isBlank()) {
            command.addAll(List.of(trainOptions.strip().split(" +")));
        }
        int status = new ProcessBuilder(command).inheritIO().start().waitFor();
        if (status != 0) {
            throw new IOException(
                    "expected a trained model, found exit status " + status + " of " + String.join(" ", command));
        }
    }

    private ObjectNode newReport(Penumbra penumbra) throws IOException {
        ObjectNode report = Results.report(Results.command(spec), penumbra.model().backend().describe());
        report.set("base", JSON.readTree(Files.readString(work.resolve("train.json"))));
        report.putArray("quality");
        return report;
    }

    private Calibration calibration(Penumbra penumbra) throws IOException {
        Path folder = work
                .resolve("calibration-" + calibrateOn.name().toLowerCase(Locale.ROOT) + "-" + batchSize + "x" + seqLen);
        if (!Files.exists(folder.resolve(Calibration.FILE))) {
            List<Sample> samples = new ArrayList<>();
            if (calibrateOn != Text.PRETRAIN) {
                addTo(samples, samples("tune.jsonl", penumbra));
            }
            if (calibrateOn != Text.TUNE) {
                addTo(samples, samples("pretrain.jsonl", penumbra));
            }
            // Neighbours are held out together: what is held out is to be of both texts.
            List<Sample> mixed = new ArrayList<>();
            int half = Math.ceilDiv(samples.size(), 2);
            for (int i = 0; i < half; i++) {
                mixed.add(samples.get(i));
                if (half + i < samples.size()) {
                    mixed.add(samples.get(half + i));
                }
            }
            long start = System.nanoTime();
            CalibrationConfig d = CalibrationConfig.of(batchSize, seqLen);
            Calibrator.calibrate(penumbra.model(), penumbra.folder(), Dataset.of(mixed),
                    new CalibrationConfig(64, 16, d.batchSize(), d.seqLen(), d.blockSize(), d.listRows(), d.poolRows(),
                            d.rank(),
                            d.coverage(), d.budget(), EPOCHS, d.noise(), d.drift(), d.seed()),
                    folder, this::say);
            say(String.format(Locale.ROOT, "calibrated in %.1f s", (System.nanoTime() - start) / 1e9));
        }
        return Calibration.read(folder, penumbra.folder());
    }

    private static void addTo(List<Sample> samples, Dataset data) {
        for (int i = 0; i < data.size(); i++) {
            samples.add(data.get(i));
        }
    }

    private static ObjectNode summary(Manifest m) {
        ObjectNode node = Results.object();
        node.put("tokens", m.tokens());
        node.put("held_out_tokens", m.heldOutTokens());
        node.put("block", m.blockSize());
        node.put("list_rows", m.listRows());
        node.put("rank", m.rank());
        node.put("budget", m.budget());
        ArrayNode layers = node.putArray("layers");
        for (Manifest.Layer layer : m.layers()) {
            layers.addPOJO(layer);
        }
        return node;
    }

    private Dataset samples(String file, Penumbra penumbra) throws IOException {
        return JsonlReader.read(work.resolve(file), IdsOnly.INSTANCE,
                new JsonlOptions(seqLen, true, LossOn.COMPLETION, penumbra.model().vocabSize()));
    }

    private void runAll(ObjectNode report, Path rowsFile, QualityRun ordered, QualityRun unordered) throws IOException {
        List<List<Quality>> ways = part == Part.MLP
                ? List.of(Quality.main(), Quality.more())
                : List.of(Quality.ofAttention());
        for (List<Quality> some : ways) {
            for (int seed = 1; seed <= seeds; seed++) {
                for (Quality quality : some) {
                    if (isOver()) {
                        say("time is over: run again to go on");
                        return;
                    }
                    run(quality, seed, report, rowsFile, quality.ordered() ? ordered : unordered);
                }
            }
        }
    }

    private boolean isOver() {
        return (System.nanoTime() - began) / 1e9 > limitSeconds;
    }

    private void run(Quality quality, int seed, ObjectNode report, Path rowsFile, QualityRun on) throws IOException {
        ArrayNode rows = (ArrayNode) report.get("quality");
        boolean asked = quality.equals(Quality.DENSE) || Pattern.compile(only).matcher(quality.key()).find();
        if (!asked || find(rows, quality, seed) != null) {
            return;
        }
        ObjectNode row;
        try {
            row = on.row(quality, seed, seed == 1);
        } catch (RuntimeException failure) {
            // The others are wanted all the same; what failed is tried again next time.
            say(quality.key() + " seed " + seed + " failed: " + failure);
            return;
        }
        rows.add(row);
        AtomicFiles.writeString(rowsFile, JSON.writeValueAsString(report));
        say(String.format(Locale.ROOT, "%s seed %d: dense loss %.4f, kept %.3f, %.1f ms a step", quality.key(), seed,
                row.get("dense_eval").doubleValue(), row.get("kept").doubleValue(), row.get("step_ms").doubleValue()));
    }

    private static @Nullable JsonNode find(ArrayNode rows, Quality quality, int seed) {
        for (JsonNode row : rows) {
            if (row.get("key").stringValue().equals(quality.key()) && row.get("seed").intValue() == seed) {
                return row;
            }
        }
        return null;
    }

    private void say(String line) {
        System.out.printf(Locale.ROOT, "%6.1fs  %s%n", (System.nanoTime() - began) / 1e9, line);
        System.out.flush();
    }
}
