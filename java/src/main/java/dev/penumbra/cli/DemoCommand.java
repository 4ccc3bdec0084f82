package dev.penumbra.cli;

import dev.penumbra.DemoModel;
import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.RestaurantGenerator;
import dev.penumbra.data.RestaurantGenerator.Pair;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.expose.Calibration;
import dev.penumbra.expose.CalibrationConfig;
import dev.penumbra.expose.Calibrator;
import dev.penumbra.io.PeftAdapter;
import dev.penumbra.io.RunLock;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import dev.penumbra.train.Evaluator;
import dev.penumbra.train.Generator;
import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.TrainConfig;
import dev.penumbra.train.Trainer;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Tunes the bundled checkpoint on generated restaurants, dense and sparse, and shows what that changed. */
@Command(name = "demo", description = "Tune the bundled checkpoint for about a minute and write a report.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class DemoCommand implements Callable<Integer> {

    private static final int BATCH = 4;
    private static final int SEQ_LEN = 256;
    private static final double LR = 2e-3;
    private static final LoraConfig LORA = new LoraConfig(16, 32, 0, Set.copyOf(LoraConfig.OPT_TARGETS), false);
    private static final int SAMPLE_TOKENS = 48;
    /** A few thousand tokens order a thousand neurons; predictors, which backward-only sparsity does without, stay rough. */
    private static final CalibrationConfig CALIBRATION = new CalibrationConfig(12, 4, BATCH, SEQ_LEN, 32, 256, 16, 8, 0.99,
            0.5, 0, 0.05, 0.1, 1);
    /** The forward pass is exact; the backward pass computes the blocks that hold this part of what the gradient gets. */
    private static final double COVERAGE = 0.9;
    /** Fewer steps show nothing; more teach nothing more. */
    private static final int FEWEST_STEPS = 20;
    private static final int MOST_STEPS = 1000;
    private static final double REQUIRED_FALL = 0.2;
    private static final SparsityConfig SPARSITY = new SparsityConfig(SelectionPolicy.ORACLE, Pass.BACKWARD, COVERAGE, 1, 32,
            0, 0.05, 0, false);

    /** What the model does: its loss on held-out restaurants, and what it makes of one of their prompts. */
    record Skill(double loss, String sample) {
    }

    /** An adapter, how its steps went, and the held-out loss with it. */
    record Tuned(LoraAdapter adapter, List<StepMetrics> metrics, double loss) {

        double stepMs() {
            return metrics.stream().mapToDouble(StepMetrics::stepMs).average().orElse(0);
        }

        /** Part of the MLPs' blocks that the backward passes computed. */
        double kept() {
            return metrics.stream().mapToDouble(m -> m.sparsity() == null ? 1 : m.sparsity().meanKept()).average().orElse(1);
        }
    }

    @Option(names = "--output", defaultValue = "demo-output", paramLabel = "DIR", description = "Where adapter and report go.")
    private Path output;
    @Option(names = "--seconds", defaultValue = "50", paramLabel = "N", description = "About how long to train, dense and sparse together.")
    private int seconds;
    @Option(names = "--threads", defaultValue = "0", paramLabel = "N", description = "CPU threads; 0: as many as there are processors.")
    private int threads;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        Usage.require(spec.commandLine(), seconds >= 1, "1 second or more", seconds);
        ModelOptions.requireThreads(spec.commandLine(), threads);
        try (RunLock alone = RunLock.acquire(output)) {
            Path model = output.resolve("model");
            requireOwnAdapter(output, model);
            Path folder = DemoModel.extract(model);
            try (HfTokenizer tokenizer = HfTokenizer.load(folder)) {
                Dataset train = RestaurantGenerator.dataset(new RestaurantGenerator(1).pairs(4000, false), tokenizer);
                Calibration calibration;
                try (Penumbra asStored = Penumbra.load(folder, Device.CPU, threads, DType.BF16)) {
                    out.println("Looking at what the model uses of its MLPs");
                    out.flush();
                    calibration = Calibrator.calibrate(asStored.model(), asStored.folder(), train, CALIBRATION,
                            output.resolve("calibration"), line -> {
                            });
                }
                try (Penumbra penumbra = Penumbra.open(folder, Device.CPU, threads, DType.BF16, calibration.orders())) {
                    penumbra.model().load();
                    tune(penumbra, calibration, train, tokenizer, out);
                }
            }
        }
        return 0;
    }

    /** Every demo begins anew and replaces the adapter of the one before, but no other. */
    private static void requireOwnAdapter(Path output, Path model) throws IOException {
        if (PeftAdapter.filesIn(output).isEmpty()) {
            return;
        }
        try (PeftAdapter found = PeftAdapter.read(output)) {
            // Its base may be told from another working directory than this one.
            if (!Files.exists(model) || !Path.of(found.baseModel()).endsWith(model.getFileName())) {
                throw new IOException(output + ": expected no adapter but an earlier demo's, found one of the model "
                        + found.baseModel() + ": move it away or choose another folder");
            }
        }
    }

    private void tune(Penumbra penumbra, Calibration calibration, Dataset train, Tokenizer tokenizer, PrintWriter out)
            throws IOException {
        // No name, food and price together are on both sides.
        List<Pair> held = new RestaurantGenerator(2).pairs(200, true);
        Dataset heldOut = RestaurantGenerator.dataset(held, tokenizer);
        String prompt = held.getFirst().prompt();

        Skill before = skill(penumbra, null, tokenizer, heldOut, prompt);
        out.println("Prompt:  " + prompt.strip());
        out.println("Before:  " + before.sample());
        out.flush();
        TimeEstimate estimate = TimeEstimate.measure(penumbra.model(), penumbra.newAdapter(LORA, 1), config(1), train, null,
                null);
        int steps = stepsIn(seconds / 2.0, estimate.stepMs());
        out.println("Dense:");
        Tuned dense = train(penumbra, config(steps), train, null, heldOut, out);
        out.println("Sparse:  the backward pass skips the blocks of neurons that its gradient hardly uses");
        Tuned sparse = train(penumbra, config(steps).sparsity(SPARSITY), train, calibration, heldOut, out);
        penumbra.writeAdapter(sparse.adapter(), output);
        out.println("step " + steps + ": saved " + output);

        Skill after = skill(penumbra, penumbra.readAdapter(output), tokenizer, heldOut, prompt);
        if (Math.abs(after.loss() - sparse.loss()) > 1e-6 * sparse.loss()) {
            throw new IOException(output + ": expected the adapter read again to give a loss of " + sparse.loss()
                    + ", found " + after.loss());
        }
        out.println("After:   " + after.sample());
        out.print(table(before.loss(), dense, sparse));
        out.println(String.format(Locale.ROOT,
                "Held-out loss %.4f -> %.4f (%.1f%% lower); the sparse adapter was written, read again and checked.",
                before.loss(), after.loss(), percentLower(before, after)));
        Path report = output.resolve("report.html");
        Files.writeString(report, Report.html("Penumbra: demo", sparse.metrics(),
                facts(penumbra.model().backend().describe(), dense, sparse, prompt, before, after)));
        out.println("Report:  " + report.toAbsolutePath());
        requireFall(before, after);
    }

    private static Tuned train(Penumbra penumbra, TrainConfig.Builder config, Dataset data,
            @Nullable Calibration calibration, Dataset heldOut, PrintWriter out) {
        LoraAdapter adapter = penumbra.newAdapter(LORA, 1);
        List<StepMetrics> metrics = new ArrayList<>();
        Trainer trainer = new Trainer(penumbra.model(), adapter, config.build(), data, null).exposure(calibration);
        trainer.listener(metrics::add).listener(new Progress(out, trainer.totalSteps()));
        trainer.run();
        return new Tuned(adapter, metrics, Evaluator.loss(penumbra.model(), adapter, heldOut, BATCH, SEQ_LEN));
    }

    /** Both ways side by side, judged dense. */
    static String table(double before, Tuned dense, Tuned sparse) {
        StringBuilder lines = new StringBuilder(String.format(Locale.ROOT, "%-8s %-20s %10s %24s%n", "", "held-out loss",
                "ms a step", "MLP blocks, backward"));
        for (Tuned way : List.of(dense, sparse)) {
            lines.append(String.format(Locale.ROOT, "%-8s %-20s %10.1f %23.0f%%%n", way == dense ? "dense" : "sparse",
                    String.format(Locale.ROOT, "%.4f -> %.4f", before, way.loss()), way.stepMs(), 100 * way.kept()));
        }
        return lines.toString();
    }

    static int stepsIn(double seconds, double stepMs) {
        return (int) Math.max(FEWEST_STEPS, Math.min(MOST_STEPS, seconds * 1000 / stepMs));
    }

    private static TrainConfig.Builder config(int steps) {
        return TrainConfig.builder().steps(steps).batchSize(BATCH).seqLen(SEQ_LEN).lr(LR)
                .warmupSteps(Math.min(10, steps / 10)).seed(1);
    }

    private static Skill skill(Penumbra penumbra, @Nullable LoraAdapter adapter, Tokenizer tokenizer, Dataset heldOut,
            String prompt) {
        double loss = Evaluator.loss(penumbra.model(), adapter, heldOut, BATCH, SEQ_LEN);
        int[] made = new Generator(penumbra.model(), adapter, tokenizer.eosId())
                .generate(GenerateCommand.prompt(tokenizer, prompt), SAMPLE_TOKENS, 0, 1, 0);
        return new Skill(loss, tokenizer.decode(made).strip().replace("\n", " "));
    }

    static Map<String, String> facts(String device, Tuned dense, Tuned sparse, String prompt, Skill before, Skill after) {
        List<StepMetrics> metrics = sparse.metrics();
        double ms = metrics.stream().mapToDouble(StepMetrics::stepMs).sum();
        long tokens = metrics.stream().mapToLong(StepMetrics::realTokens).sum();
        Map<String, String> facts = new LinkedHashMap<>();
        facts.put("Held-out loss", String.format(Locale.ROOT, "%.4f before, %.4f after (%.1f%% lower)", before.loss(),
                after.loss(), percentLower(before, after)));
        facts.put("Dense beside it", String.format(Locale.ROOT,
                "%.4f after as many dense steps of %.1f ms; %.0f%% of the MLPs' blocks in the sparse ones' backward passes",
                dense.loss(), dense.stepMs(), 100 * sparse.kept()));
        facts.put("Prompt", prompt.strip());
        facts.put("Before", before.sample());
        facts.put("After", after.sample());
        facts.put("Time", String.format(Locale.ROOT, "%.1f s, %.1f ms a step, %.0f real tokens/s", ms / 1000,
                ms / metrics.size(), tokens / (ms / 1000)));
        facts.put("Steps",
                metrics.size() + " of " + BATCH + " x " + SEQ_LEN + " tokens, packed, bf16, rate " + LR + ", linear");
        facts.put("LoRA", String.format(Locale.ROOT, "r %d, alpha %.0f, on %s", LORA.r(), LORA.loraAlpha(),
                String.join(", ", LORA.targetModules())));
        facts.put("Device", device);
        return facts;
    }

    private static double percentLower(Skill before, Skill after) {
        return 100 * (1 - after.loss() / before.loss());
    }

    /** A demonstration that shows nothing has failed. */
    static void requireFall(Skill before, Skill after) throws IOException {
        if (!(percentLower(before, after) >= 100 * REQUIRED_FALL)) {
            throw new IOException(String.format(Locale.ROOT,
                    "expected the held-out loss to fall by at least %.0f%%, found %.1f%%", 100 * REQUIRED_FALL,
                    percentLower(before, after)));
        }
    }
}
