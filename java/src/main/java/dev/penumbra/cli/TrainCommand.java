package dev.penumbra.cli;

import static java.util.stream.Collectors.toSet;

import dev.penumbra.Penumbra;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.expose.Calibration;
import dev.penumbra.internal.Counted;
import dev.penumbra.io.AtomicFiles;
import dev.penumbra.io.RunLock;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.PassOptions;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.train.Schedule;
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
import java.util.concurrent.Callable;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Tunes a LoRA adapter on a JSON Lines file. */
@Command(name = "train", description = "Tune a LoRA adapter.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class TrainCommand implements Callable<Integer> {

    @Mixin
    private ModelOptions model;
    @Mixin
    private DataOptions data;
    @Mixin
    private SparsityOptions sparsity;
    @Option(names = "--output", required = true, paramLabel = "DIR", description = "Folder of the adapter, in PEFT's format, and of checkpoints; those of another run are not overwritten.")
    private Path output;
    @Option(names = "--steps", defaultValue = "0", paramLabel = "N", description = "Optimizer steps; overrides --epochs when above 0.")
    private int steps;
    @Option(names = "--epochs", defaultValue = "1", paramLabel = "N", description = "Passes over the data.")
    private int epochs;
    @Option(names = "--batch-size", defaultValue = "4", paramLabel = "B", description = "Rows of a micro-batch; a row has several samples, see --no-pack.")
    private int batchSize;
    @Option(names = "--lr", defaultValue = "3e-4", paramLabel = "X", description = "Learning rate.")
    private double lr;
    @Option(names = "--schedule", defaultValue = "linear", paramLabel = "NAME", description = "How the rate falls after warm-up: constant, linear or cosine.")
    private Schedule schedule;
    @Option(names = "--warmup-steps", defaultValue = "0", paramLabel = "N", description = "First steps, in which the rate rises from 0.")
    private int warmupSteps;
    @Option(names = "--weight-decay", defaultValue = "0", paramLabel = "X", description = "AdamW's decay.")
    private double weightDecay;
    @Option(names = "--clip", defaultValue = "1", paramLabel = "X", description = "Largest global norm of the gradient; 0: no clipping.")
    private double clip;
    @Option(names = "--grad-accum", defaultValue = "1", paramLabel = "N", description = "Micro-batches whose gradients make one step.")
    private int gradAccum;
    @Option(names = "--offload-layers", paramLabel = "N", description = "Layers, the lowest trained ones, whose activations wait in host memory between forward and backward pass; results are the same. Default: on a GPU as many as cost hardly any time, in sparse runs none.")
    private @Nullable Integer offloadLayers;
    @Option(names = "--lora-r", defaultValue = "8", paramLabel = "R", description = "Rank of the adapter.")
    private int loraR;
    @Option(names = "--lora-alpha", defaultValue = "16", paramLabel = "A", description = "The adapter's part of a layer is scaled by A / R.")
    private double loraAlpha;
    @Option(names = "--lora-dropout", defaultValue = "0", paramLabel = "P", description = "Chance that an element of an adapter's input is dropped.")
    private double loraDropout;
    @Option(names = "--targets", defaultValue = "q_proj,v_proj", split = ",", paramLabel = "NAME", description = "Layers that are adapted, among q_proj, k_proj, v_proj, out_proj, fc1 and fc2.")
    private List<String> targets;
    @Option(names = "--init-adapter", paramLabel = "DIR", description = "Start from this adapter, with its r, alpha, dropout and targets.")
    private @Nullable Path initAdapter;
    @Option(names = "--seed", defaultValue = "42", paramLabel = "N", description = "Of the adapter's beginning, the samples' order and dropout; equal seeds and threads give equal bits.")
    private long seed;
    @Option(names = "--no-shuffle", description = "Keep the file's order.")
    private boolean noShuffle;
    @Option(names = "--no-pack", description = "One sample a row, padded to the batch's longest.")
    private boolean noPack;
    @Option(names = "--eval-data", paramLabel = "FILE", description = "JSON Lines as --data, whose loss is measured.")
    private @Nullable Path evalData;
    @Option(names = "--eval-every", defaultValue = "0", paramLabel = "N", description = "Steps between evaluations; 0: at the end.")
    private int evalEvery;
    @Option(names = "--save-every", defaultValue = "0", paramLabel = "N", description = "Steps between checkpoints; 0: none.")
    private int saveEvery;
    @Option(names = "--resume", description = "Continue from the last checkpoint in the output folder; without one, and without an adapter there, begin.")
    private boolean resume;
    @Option(names = "--metrics", paramLabel = "FILE", description = "Write a JSON object a step: step, loss, lr, grad_norm, real_tokens, tokens_per_s, step_ms and what sparse steps kept.")
    private @Nullable Path metrics;
    @Option(names = "--report", paramLabel = "FILE", description = "Write a page with the loss and with what sparse steps kept.")
    private @Nullable Path report;
    @Option(names = "--dry-run", description = "Print the memory plan and a time estimate, and write nothing.")
    private boolean dryRun;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        CommandLine line = spec.commandLine();
        // Before anything is opened, as far as it can be: wrong usage.
        Usage.require(line, report == null || !Files.isDirectory(report), "a file for --report", "the folder " + report);
        Usage.require(line, metrics == null || !Files.isDirectory(metrics), "a file for --metrics", "the folder " + metrics);
        model.check(line);
        Usage.requireFor(line, initAdapter == null, "no --init-adapter", "one, whose own r, alpha, dropout and targets hold",
                "--lora-r", "--lora-alpha", "--lora-dropout", "--targets");
        Usage.require(line, evalEvery <= 0 || evalData != null, "--eval-data with --eval-every", "none");
        sparsity.check(line);
        Usage.of(line, this::lora);
        Usage.of(line, () -> config(SparsityConfig.OFF, AttentionConfig.OFF).build());
        SparsityOptions.Asked sparse = sparsity.read(line, model.model);
        Calibration calibration = sparse.calibration();
        try (RunLock alone = dryRun ? null : RunLock.acquire(output);
                Tokenizer tokenizer = HfTokenizer.load(model.model);
                Penumbra penumbra = model.open(calibration == null ? List.of() : calibration.orders())) {
            if (report != null && !dryRun) {
                AtomicFiles.requireWritable(report);
            }
            int vocabSize = penumbra.model().vocabSize();
            Dataset samples = data.read(tokenizer, vocabSize);
            Dataset evaluation = evalData == null ? null : data.read(evalData, tokenizer, vocabSize);
            LoraAdapter adapter = adapter(penumbra);
            TrainConfig config = config(sparse.mlp(), sparse.attention()).build();
            Trainer trainer = new Trainer(penumbra.model(), adapter, config, samples, evaluation).exposure(calibration)
                    .attentionExposure(sparse.exposure());
            if (!sparse.note().isEmpty()) {
                out.println(sparse.note());
            }
            if (dryRun) {
                describe(trainer, penumbra, samples, sparse, out);
            } else {
                train(trainer, alone, penumbra, sparse, out, () -> attention(penumbra, adapter, samples, sparse));
            }
        }
        return 0;
    }

    private LoraConfig lora() {
        return new LoraConfig(loraR, loraAlpha, loraDropout, targets.stream().map(String::strip).collect(toSet()), false);
    }

    private LoraAdapter adapter(Penumbra penumbra) throws IOException {
        return initAdapter != null ? penumbra.readAdapter(initAdapter) : penumbra.newAdapter(lora(), seed);
    }

    private TrainConfig.Builder config(SparsityConfig mlp, AttentionConfig attention) {
        return TrainConfig.builder().steps(steps).epochs(epochs).batchSize(batchSize).seqLen(data.seqLen).lr(lr)
                .schedule(schedule).warmupSteps(warmupSteps).weightDecay(weightDecay).clip(clip).gradAccum(gradAccum)
                .seed(seed).shuffle(!noShuffle).pack(!noPack).evalEvery(evalEvery)
                .saveEvery(saveEvery).output(output).resume(resume)
                .offloadedLayers(offloadLayers == null ? PassOptions.AUTOMATIC : offloadLayers)
                .sparsity(mlp).attention(attention);
    }

    private void describe(Trainer trainer, Penumbra penumbra, Dataset samples, SparsityOptions.Asked sparse,
            PrintWriter out) throws IOException {
        out.print(trainer.plan());
        trainer.plan().requireFits(penumbra.model().backend());
        out.flush();
        TimeEstimate estimate = TimeEstimate.measure(penumbra.model(), adapter(penumbra),
                config(sparse.mlp().withoutWarmup(), sparse.attention().withoutWarmup()).evalEvery(0).saveEvery(0)
                        .resume(false).output(null),
                samples,
                sparse.calibration(), sparse.exposure());
        out.println(String.format(Locale.ROOT,
                "%s of about %.1f ms: %s, without evaluations; measured on %s of this run whose result was thrown away",
                Counted.of(trainer.totalSteps(), "step"), estimate.stepMs(),
                Progress.duration(trainer.totalSteps() * estimate.stepMs() / 1000), Counted.of(estimate.steps(), "step")));
    }

    /** Pictures of the tuned adapter's attention, where it was sparse by what a calibration knows. */
    private static String attention(Penumbra penumbra, LoraAdapter adapter, Dataset samples, SparsityOptions.Asked sparse) {
        if (sparse.attention().isOff() || sparse.calibration() == null) {
            return "";
        }
        return sparse.calibration().attention()
                .map(known -> AttentionPage.afterTraining(penumbra.model(), adapter, known, samples, sparse.attention()))
                .orElse("");
    }

    private void train(Trainer trainer, RunLock alone, Penumbra penumbra, SparsityOptions.Asked sparse, PrintWriter out,
            Supplier<String> figures) throws IOException {
        out.println("The model's own dropout is not applied; the adapter's is.");
        List<StepMetrics> steps = new ArrayList<>();
        trainer.listener(new Progress(out, trainer.totalSteps()));
        if (report != null) {
            trainer.listener(steps::add);
        }
        try (MetricsFile file = metrics == null ? null : new MetricsFile(metrics);
                Interrupt interrupt = new Interrupt(trainer::cancel)) {
            if (file != null) {
                trainer.listener(file);
            }
            StepMetrics last = trainer.run(alone);
            if (report != null && last != null) {
                AtomicFiles.writeString(report, Report.html("Penumbra: " + output.getFileName(), steps,
                        figures.get(), facts(penumbra, sparse)));
            }
            out.println(outcome(trainer.stepsDone(), trainer.totalSteps(), output));
            out.flush();
        }
    }

    /** What a run that returned says: only one that did all its steps has the adapter that was asked for. */
    static String outcome(int done, int total, Path output) {
        if (done == total) {
            return "Adapter: " + output;
        }
        return done == 0
                ? "Stopped before the first of " + Counted.of(total, "step") + ": nothing is trained or saved"
                : "Stopped after step " + done + " of " + total + ": --resume goes on";
    }

    private static Map<String, String> facts(Penumbra penumbra, SparsityOptions.Asked sparse) {
        Map<String, String> facts = new LinkedHashMap<>();
        facts.put("Device", penumbra.model().backend().describe());
        facts.put("MLP sparsity", sparse.mlp().describe());
        facts.put("Attention sparsity", sparse.attention().describe());
        return facts;
    }
}
