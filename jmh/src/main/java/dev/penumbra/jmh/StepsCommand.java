package dev.penumbra.jmh;

import dev.penumbra.Penumbra;
import dev.penumbra.backend.Backend;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.Trainer;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.stream.DoubleStream;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;
import tools.jackson.databind.node.ObjectNode;

/** Trains some steps in this process and prints what they took; {@code peers/hf_peft.py} does the same with PEFT. */
@Command(name = "steps", description = "Train some steps and print a line of JSON: medians of time and of real tokens/s, peak memory.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class StepsCommand implements Callable<Integer> {

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder.")
    private Path model;
    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines of tokens.")
    private Path data;
    @Option(names = "--loss", defaultValue = "COMPLETION", description = "${COMPLETION-CANDIDATES}")
    private LossOn loss;
    @Option(names = "--batch-size", defaultValue = "2", description = "Rows.")
    private int batchSize;
    @Option(names = "--seq-len", defaultValue = "512", description = "Tokens of a row.")
    private int seqLen;
    @Option(names = "--shuffle", description = "Not in the file's order.")
    private boolean shuffle;
    @Option(names = "--steps", defaultValue = "5", description = "Steps that are measured.")
    private int steps;
    @Option(names = "--warmup", defaultValue = "2", description = "Steps before them.")
    private int warmup;
    @Option(names = "--dtype", defaultValue = "BF16", description = "BF16 or F32")
    private DType dtype;
    @Option(names = "--device", defaultValue = "CPU", description = "${COMPLETION-CANDIDATES}")
    private Device.Kind device;
    @Option(names = "--threads", defaultValue = "2", description = "CPU threads.")
    private int threads;
    @Option(names = "--sparsity-pass", description = "Compute only --budget of the MLP's blocks and --attention-budget of attention's: ${COMPLETION-CANDIDATES}")
    private @Nullable Pass sparsityPass;
    @Option(names = "--budget", defaultValue = "0.25", description = "Part of the MLP's blocks with --sparsity-pass; 1: dense.")
    private double budget;
    @Option(names = "--attention-budget", defaultValue = "1", description = "Part of attention's blocks on and below the diagonals with --sparsity-pass; 1: dense.")
    private double attentionBudget;
    @Option(names = "--attention-block", defaultValue = "128", description = "Rows of an attention block.")
    private int attentionBlock;
    @Option(names = "--mlp-block", defaultValue = "128", description = "Neurons of a block.")
    private int block;
    @Option(names = "--rows-per-list", defaultValue = "0", description = "Tokens that share a list; 0: the whole batch.")
    private int rowsPerList;
    @Option(names = "--offload-layers", defaultValue = "-1", description = "Layers whose activations wait in host memory; -1: as many as cost hardly any time.")
    private int offloadLayers;
    @Option(names = "--turn", defaultValue = "0", description = "Print a line and wait for one on standard input before the warm-up and before every so many steps after it; 0: never.")
    private int turn;

    @Override
    public Integer call() throws Exception {
        List<StepMetrics> metrics = new ArrayList<>();
        String description;
        double peakMib;
        Device on = new Device(device, 0);
        // Opened before the model is loaded, to see what the device has free without it.
        try (Backend before = Backends.open(on, threads, true)) {
            long free = before.freeBytes().orElse(0);
            try (Penumbra penumbra = Penumbra.load(model, on, threads, dtype)) {
                Backend backend = penumbra.model().backend();
                description = backend.describe();
                List<Long> used = new ArrayList<>();
                Trainer trainer = TrainingRun.trainer(penumbra, data, loss, batchSize, seqLen, warmup + steps, shuffle,
                        offloadLayers,
                        sparsityPass == null
                                ? SparsityConfig.OFF
                                : DeclaredSparsity.config(sparsityPass, budget, block, rowsPerList),
                        sparsityPass == null
                                ? AttentionConfig.OFF
                                : DeclaredSparsity.attention(sparsityPass, attentionBudget, attentionBlock))
                        .listener(metrics::add);
                if (!on.isHost()) {
                    trainer.listener(step -> used.add(free - backend.freeBytes().orElse(0)));
                }
                if (turn > 0) {
                    awaitTurn();
                    trainer.listener(this::awaitTurnAfter);
                }
                trainer.run();
                peakMib = on.isHost() ? Results.peakMib() : Collections.max(used) / 1048576.0;
            }
        }
        ObjectNode line = Results.object();
        List<StepMetrics> measured = metrics.subList(warmup, metrics.size());
        line.put("ms", Results.rounded(median(measured.stream().mapToDouble(StepMetrics::stepMs))));
        line.put("real_tokens_per_s", Results.rounded(median(measured.stream().mapToDouble(StepMetrics::tokensPerSecond))));
        line.put("peak_mib", Results.rounded(peakMib));
        line.put("first_loss", metrics.getFirst().loss());
        StepMetrics last = metrics.getLast();
        if (last.sparsity() != null) {
            line.put("mlp_kept", Results.rounded(last.sparsity().meanKept()));
        }
        if (last.attention() != null) {
            line.put("attention_kept", Results.rounded(last.attention().meanKept()));
        }
        line.putObject("versions").put("backend", description);
        System.out.println(line.toString());
        return 0;
    }

    private void awaitTurnAfter(StepMetrics step) {
        int measured = step.step() - warmup;
        if (measured >= 0 && measured < steps && measured % turn == 0) {
            awaitTurn();
        }
    }

    private static void awaitTurn() {
        System.out.println(Turns.READY);
        try {
            if (System.in.read() < 0) {
                throw new IllegalStateException("expected a turn, found the end of standard input");
            }
        } catch (IOException failure) {
            throw new UncheckedIOException(failure.getMessage(), failure);
        }
    }

    private static double median(DoubleStream values) {
        double[] sorted = values.sorted().toArray();
        int middle = sorted.length / 2;
        return sorted.length % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
    }
}
