package dev.penumbra.cli;

import dev.penumbra.DemoModel;
import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.RestaurantGenerator;
import dev.penumbra.data.RestaurantGenerator.Pair;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
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

/** Tunes the bundled checkpoint on generated restaurants and shows what it changed. */
@Command(name = "demo", description = "Tune the bundled checkpoint for about a minute and write a report.", mixinStandardHelpOptions = true)
final class DemoCommand implements Callable<Integer> {

    private static final int BATCH = 4;
    private static final int SEQ_LEN = 256;
    private static final double REQUIRED_FALL = 0.2;

    @Option(names = "--output", defaultValue = "demo-output", paramLabel = "DIR", description = "Where adapter and report go (default: ${DEFAULT-VALUE}).")
    private Path output;
    @Option(names = "--seconds", defaultValue = "50", description = "About how long to train (default: ${DEFAULT-VALUE}).")
    private int seconds;
    @Option(names = "--threads", defaultValue = "0", description = "CPU threads; 0: as many as there are processors.")
    private int threads;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        Path folder = DemoModel.extract(output.resolve("model"));
        try (HfTokenizer tokenizer = HfTokenizer.load(folder);
                Penumbra penumbra = Penumbra.load(folder, Device.CPU, threads, DType.BF16)) {
            // No name, food and price together are on both sides.
            List<Pair> tuned = new RestaurantGenerator(1).pairs(4000, false);
            List<Pair> held = new RestaurantGenerator(2).pairs(200, true);
            Dataset train = RestaurantGenerator.dataset(tuned, tokenizer);
            Dataset heldOut = RestaurantGenerator.dataset(held, tokenizer);
            LoraConfig lora = new LoraConfig(16, 32, 0, Set.copyOf(LoraConfig.OPT_TARGETS), false);

            double before = Evaluator.loss(penumbra.model(), null, heldOut, BATCH, SEQ_LEN);
            String prompt = held.getFirst().prompt();
            String sampleBefore = sample(penumbra, null, tokenizer, prompt);
            out.println("Prompt:  " + prompt);
            out.println("Before:  " + sampleBefore);
            int steps = stepsInTime(penumbra, lora, train);
            LoraAdapter adapter = penumbra.newAdapter(lora, 1);
            Files.createDirectories(output);
            Trainer trainer = new Trainer(penumbra.model(), adapter,
                    config(steps).output(output).baseModel(folder.toString()).build(), train, null);
            List<StepMetrics> metrics = new ArrayList<>();
            trainer.listener(metrics::add).listener(new Progress(out, steps)).run();

            LoraAdapter read = penumbra.readAdapter(output);
            double after = Evaluator.loss(penumbra.model(), read, heldOut, BATCH, SEQ_LEN);
            double inMemory = Evaluator.loss(penumbra.model(), adapter, heldOut, BATCH, SEQ_LEN);
            if (Math.abs(after - inMemory) > 1e-6 * inMemory) {
                throw new IOException(
                        output + ": expected the adapter read again to give a loss of " + inMemory + ", found " + after);
            }
            String sampleAfter = sample(penumbra, read, tokenizer, prompt);
            double fall = 1 - after / before;
            out.println("After:   " + sampleAfter);
            out.println(String.format(Locale.ROOT,
                    "Held-out loss %.4f -> %.4f (%.1f%% lower); adapter written, read again and checked.", before, after,
                    100 * fall));
            double ms = metrics.stream().mapToDouble(StepMetrics::stepMs).sum();
            long tokens = metrics.stream().mapToLong(StepMetrics::realTokens).sum();
            Map<String, String> facts = new LinkedHashMap<>();
            facts.put("Device", penumbra.model().backend().describe());
            facts.put("LoRA", "r 16, alpha 32, on " + String.join(", ", lora.targetModules()));
            facts.put("Steps", steps + " of " + BATCH + " x " + SEQ_LEN + " tokens, packed, bf16, rate 2e-3, linear");
            facts.put("Time", String.format(Locale.ROOT, "%.1f s, %.1f ms a step, %.0f real tokens/s", ms / 1000, ms / steps,
                    tokens / (ms / 1000)));
            facts.put("Held-out loss",
                    String.format(Locale.ROOT, "%.4f before, %.4f after (%.1f%% lower)", before, after, 100 * fall));
            facts.put("Prompt", prompt);
            facts.put("Before", sampleBefore);
            facts.put("After", sampleAfter);
            Path report = output.resolve("report.html");
            Files.writeString(report, Report.html(metrics, facts));
            out.println("Report:  " + report.toAbsolutePath());
            if (fall < REQUIRED_FALL) {
                throw new IOException(
                        String.format(Locale.ROOT, "expected the held-out loss to fall by at least %.0f%%, found %.1f%%",
                                100 * REQUIRED_FALL, 100 * fall));
            }
        }
        return 0;
    }

    private static TrainConfig.Builder config(int steps) {
        return TrainConfig.builder().steps(steps).batchSize(BATCH).seqLen(SEQ_LEN).lr(2e-3)
                .warmupSteps(Math.min(10, steps / 10)).seed(1);
    }

    /** How many steps fit, measured on an adapter that is thrown away. */
    private int stepsInTime(Penumbra penumbra, LoraConfig lora, Dataset train) {
        double ms = TimeEstimate.measure(penumbra.model(), penumbra.newAdapter(lora, 1), config(1), train).stepMs();
        return (int) Math.max(20, Math.min(1000, seconds * 1000 / ms));
    }

    private static String sample(Penumbra penumbra, @Nullable LoraAdapter adapter, HfTokenizer tokenizer, String prompt) {
        return tokenizer
                .decode(new Generator(penumbra.model(), adapter, tokenizer.eosId())
                        .generate(GenerateCommand.prompt(tokenizer, prompt), 48, 0, 1, 0))
                .strip().replace("\n", " ");
    }
}
