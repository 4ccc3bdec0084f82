package dev.penumbra.cli;

import dev.penumbra.DemoModel;
import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.RestaurantGenerator;
import dev.penumbra.data.RestaurantGenerator.Pair;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.io.RunLock;
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
@Command(name = "demo", description = "Tune the bundled checkpoint for about a minute and write a report.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class DemoCommand implements Callable<Integer> {

    private static final int BATCH = 4;
    private static final int SEQ_LEN = 256;
    private static final double LR = 2e-3;
    private static final LoraConfig LORA = new LoraConfig(16, 32, 0, Set.copyOf(LoraConfig.OPT_TARGETS), false);
    private static final int SAMPLE_TOKENS = 48;
    /** Fewer steps show nothing; more teach nothing more. */
    private static final int FEWEST_STEPS = 20;
    private static final int MOST_STEPS = 1000;
    private static final double REQUIRED_FALL = 0.2;

    /** What the model does: its loss on held-out restaurants, and what it makes of one of their prompts. */
    record Skill(double loss, String sample) {
    }

    @Option(names = "--output", defaultValue = "demo-output", paramLabel = "DIR", description = "Where adapter and report go.")
    private Path output;
    @Option(names = "--seconds", defaultValue = "50", paramLabel = "N", description = "About how long to train.")
    private int seconds;
    @Option(names = "--threads", defaultValue = "0", paramLabel = "N", description = "CPU threads; 0: as many as there are processors.")
    private int threads;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        try (RunLock alone = RunLock.acquire(output)) {
            Path folder = DemoModel.extract(output.resolve("model"));
            try (HfTokenizer tokenizer = HfTokenizer.load(folder);
                    Penumbra penumbra = Penumbra.load(folder, Device.CPU, threads, DType.BF16)) {
                tune(penumbra, tokenizer, out);
            }
        }
        return 0;
    }

    private void tune(Penumbra penumbra, Tokenizer tokenizer, PrintWriter out) throws IOException {
        // No name, food and price together are on both sides.
        List<Pair> held = new RestaurantGenerator(2).pairs(200, true);
        Dataset heldOut = RestaurantGenerator.dataset(held, tokenizer);
        Dataset train = RestaurantGenerator.dataset(new RestaurantGenerator(1).pairs(4000, false), tokenizer);
        String prompt = held.getFirst().prompt();

        Skill before = skill(penumbra, null, tokenizer, heldOut, prompt);
        out.println("Prompt:  " + prompt.strip());
        out.println("Before:  " + before.sample());
        out.flush();
        LoraAdapter adapter = penumbra.newAdapter(LORA, 1);
        List<StepMetrics> metrics = train(penumbra, adapter, train, out);

        LoraAdapter written = penumbra.readAdapter(output);
        Skill after = skill(penumbra, written, tokenizer, heldOut, prompt);
        double inMemory = Evaluator.loss(penumbra.model(), adapter, heldOut, BATCH, SEQ_LEN);
        if (Math.abs(after.loss() - inMemory) > 1e-6 * inMemory) {
            throw new IOException(output + ": expected the adapter read again to give a loss of " + inMemory + ", found "
                    + after.loss());
        }
        out.println("After:   " + after.sample());
        out.println(String.format(Locale.ROOT,
                "Held-out loss %.4f -> %.4f (%.1f%% lower); adapter written, read again and checked.", before.loss(),
                after.loss(), percentLower(before, after)));
        Path report = output.resolve("report.html");
        Files.writeString(report, Report.html("Penumbra: demo", metrics,
                facts(penumbra.model().backend().describe(), metrics, prompt, before, after)));
        out.println("Report:  " + report.toAbsolutePath());
        requireFall(before, after);
    }

    private List<StepMetrics> train(Penumbra penumbra, LoraAdapter adapter, Dataset data, PrintWriter out) {
        TimeEstimate estimate = TimeEstimate.measure(penumbra.model(), penumbra.newAdapter(LORA, 1), config(1), data,
                null);
        int steps = stepsIn(seconds, estimate.stepMs());
        TrainConfig config = config(steps).output(output).baseModel(penumbra.directory().toString()).build();
        List<StepMetrics> metrics = new ArrayList<>();
        new Trainer(penumbra.model(), adapter, config, data, null)
                .listener(metrics::add).listener(new Progress(out, steps)).run();
        return metrics;
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

    static Map<String, String> facts(String device, List<StepMetrics> metrics, String prompt, Skill before, Skill after) {
        double ms = metrics.stream().mapToDouble(StepMetrics::stepMs).sum();
        long tokens = metrics.stream().mapToLong(StepMetrics::realTokens).sum();
        Map<String, String> facts = new LinkedHashMap<>();
        facts.put("Held-out loss", String.format(Locale.ROOT, "%.4f before, %.4f after (%.1f%% lower)", before.loss(),
                after.loss(), percentLower(before, after)));
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
