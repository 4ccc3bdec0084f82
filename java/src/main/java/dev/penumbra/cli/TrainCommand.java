package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Device;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.JsonlOptions;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.data.JsonlReader;
import dev.penumbra.io.RunLock;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.tensor.DType;
import dev.penumbra.train.Schedule;
import dev.penumbra.train.StepListener;
import dev.penumbra.train.TrainConfig;
import dev.penumbra.train.Trainer;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Set;
import java.util.concurrent.Callable;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Tunes a LoRA adapter on a JSON Lines file. */
@Command(name = "train", description = "Tune a LoRA adapter.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class TrainCommand implements Callable<Integer> {

    /** Long enough for a step and a checkpoint of a large model. */
    private static final long SAVE_SECONDS = 120;

    enum Compute {
        F32, BF16
    }

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder.")
    private Path model;
    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines.")
    private Path data;
    @Option(names = "--output", required = true, paramLabel = "DIR", description = "Where the adapter goes.")
    private Path output;
    @Option(names = "--steps", defaultValue = "0", description = "Optimizer steps; overrides --epochs when above 0.")
    private int steps;
    @Option(names = "--epochs", defaultValue = "1", description = "Passes over the data.")
    private int epochs;
    @Option(names = "--batch-size", defaultValue = "4", description = "Rows of a micro-batch.")
    private int batchSize;
    @Option(names = "--seq-len", defaultValue = "512", description = "Tokens of a row.")
    private int seqLen;
    @Option(names = "--truncate", description = "Cut longer samples instead of refusing them.")
    private boolean truncate;
    @Option(names = "--lr", defaultValue = "3e-4", description = "Learning rate.")
    private double lr;
    @Option(names = "--schedule", defaultValue = "linear", description = "${COMPLETION-CANDIDATES}")
    private Schedule schedule;
    @Option(names = "--warmup-steps", defaultValue = "0", description = "Steps of rising rate.")
    private int warmupSteps;
    @Option(names = "--weight-decay", defaultValue = "0", description = "AdamW's decay.")
    private double weightDecay;
    @Option(names = "--clip", defaultValue = "1", description = "Largest global norm of the gradient; 0: no clipping.")
    private double clip;
    @Option(names = "--grad-accum", defaultValue = "1", description = "Micro-batches of a step.")
    private int gradAccum;
    @Option(names = "--lora-r", defaultValue = "8", description = "Rank.")
    private int loraR;
    @Option(names = "--lora-alpha", defaultValue = "16", description = "Alpha.")
    private double loraAlpha;
    @Option(names = "--lora-dropout", defaultValue = "0", description = "Dropout on the adapter's way.")
    private double loraDropout;
    @Option(names = "--targets", defaultValue = "q_proj,v_proj", split = ",", description = "Layers that are adapted.")
    private List<String> targets;
    @Option(names = "--init-adapter", paramLabel = "DIR", description = "Start from this adapter; its r, alpha and targets hold.")
    private @Nullable Path initAdapter;
    @Option(names = "--dtype", defaultValue = "bf16", description = "${COMPLETION-CANDIDATES}")
    private Compute dtype;
    @Option(names = "--device", defaultValue = "cpu", description = "${COMPLETION-CANDIDATES}")
    private Device.Kind device;
    @Option(names = "--seed", defaultValue = "42", description = "Equal seeds and threads give equal bits.")
    private long seed;
    @Option(names = "--no-shuffle", description = "Keep the file's order.")
    private boolean noShuffle;
    @Option(names = "--no-pack", description = "One sample a row.")
    private boolean noPack;
    @Option(names = "--loss", defaultValue = "completion", description = "${COMPLETION-CANDIDATES}")
    private LossOn loss;
    @Option(names = "--eval-data", paramLabel = "FILE", description = "JSON Lines that are evaluated.")
    private @Nullable Path evalData;
    @Option(names = "--eval-every", defaultValue = "0", description = "Steps between evaluations; 0: at the end.")
    private int evalEvery;
    @Option(names = "--save-every", defaultValue = "0", description = "Steps between checkpoints; 0: none.")
    private int saveEvery;
    @Option(names = "--resume", description = "Continue from the last checkpoint in the output folder.")
    private boolean resume;
    @Option(names = "--metrics", paramLabel = "FILE", description = "Write a JSON object a step.")
    private @Nullable Path metrics;
    @Option(names = "--threads", defaultValue = "0", description = "CPU threads; 0: as many as there are processors.")
    private int threads;
    @Option(names = "--dry-run", description = "Print the memory plan and train nothing.")
    private boolean dryRun;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws Exception {
        PrintWriter out = spec.commandLine().getOut();
        if (device == Device.Kind.CUDA) {
            throw new IllegalArgumentException("expected --device cpu: this build has no CUDA backend");
        }
        try (HfTokenizer tokenizer = HfTokenizer.load(model);
                Penumbra penumbra = Penumbra.load(model, Device.CPU, threads,
                        dtype == Compute.F32 ? DType.F32 : DType.BF16)) {
            out.println("The configuration's own dropout is not applied; --lora-dropout is " + loraDropout + ".");
            JsonlOptions options = new JsonlOptions(seqLen, truncate, loss, penumbra.model().vocabSize());
            Dataset samples = JsonlReader.read(data, tokenizer, options);
            Dataset evaluation = evalData == null ? null : JsonlReader.read(evalData, tokenizer, options);
            LoraAdapter adapter = initAdapter != null
                    ? penumbra.readAdapter(initAdapter)
                    : penumbra.newAdapter(new LoraConfig(loraR, loraAlpha, loraDropout, Set.copyOf(targets), false), seed);
            TrainConfig config = TrainConfig.builder().steps(steps).epochs(epochs).batchSize(batchSize).seqLen(seqLen).lr(lr)
                    .schedule(schedule)
                    .warmupSteps(warmupSteps).weightDecay(weightDecay).clip(clip).gradAccum(gradAccum).seed(seed)
                    .shuffle(!noShuffle).pack(!noPack)
                    .evalEvery(evalEvery).saveEvery(saveEvery).output(output).baseModel(model.toString()).resume(resume)
                    .build();
            Trainer trainer = new Trainer(penumbra.model(), adapter, config, samples, evaluation);
            if (dryRun) {
                out.println(trainer.plan());
                out.println(trainer.totalSteps() + " steps");
                return 0;
            }
            Files.createDirectories(output);
            train(trainer, out);
            out.println("Adapter: " + output);
        }
        return 0;
    }

    private void train(Trainer trainer, PrintWriter out) throws Exception {
        CountDownLatch done = new CountDownLatch(1);
        // The JVM ends when its hooks have: the hook of an interrupt waits for the step and the checkpoint.
        Thread interrupted = new Thread(() -> {
            trainer.cancel();
            try {
                done.await(SAVE_SECONDS, TimeUnit.SECONDS);
            } catch (InterruptedException ended) {
                Thread.currentThread().interrupt();
            }
        });
        Runtime.getRuntime().addShutdownHook(interrupted);
        try (RunLock alone = RunLock.acquire(output);
                MetricsFile file = metrics == null ? null : new MetricsFile(metrics, resume)) {
            trainer.listener(new Progress(out, trainer.totalSteps())).listener(new Evaluations(out));
            if (file != null) {
                trainer.listener(file);
            }
            trainer.run();
        } finally {
            done.countDown();
            try {
                Runtime.getRuntime().removeShutdownHook(interrupted);
            } catch (IllegalStateException ending) {
                // The hook is running: the process ends with it.
            }
        }
    }

    private record Evaluations(PrintWriter out) implements StepListener {
        @Override
        public void onStep(dev.penumbra.train.StepMetrics step) {
        }

        @Override
        public void onEval(int step, double loss) {
            out.println(String.format(Locale.ROOT, "step %d: evaluation loss %.4f, perplexity %.2f", step, loss,
                    Math.exp(loss)));
        }

        @Override
        public void onSave(int step, Path folder) {
            out.println("step " + step + ": saved " + folder);
        }
    }
}
