package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.JsonlOptions;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.data.JsonlReader;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.train.Evaluator;
import java.io.IOException;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Prints loss and perplexity over a file. */
@Command(name = "eval", description = "Print loss and perplexity over JSON Lines.", mixinStandardHelpOptions = true)
final class EvalCommand implements Callable<Integer> {

    enum LossName {
        completion, all
    }

    @Mixin
    private ModelOptions options;

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines.")
    private Path data;

    @Option(names = "--adapter", paramLabel = "DIR", description = "PEFT adapter.")
    private Path adapter;

    @Option(names = "--batch-size", defaultValue = "4")
    private int batchSize;

    @Option(names = "--seq-len", defaultValue = "512")
    private int seqLen;

    @Option(names = "--loss", defaultValue = "completion", description = "completion or all (default: ${DEFAULT-VALUE}).")
    private LossName loss;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        try (Tokenizer tokenizer = HfTokenizer.load(options.model); Penumbra penumbra = options.load()) {
            LossOn lossOn = loss == LossName.all ? LossOn.ALL : LossOn.COMPLETION;
            Dataset dataset = JsonlReader.read(data, tokenizer,
                    new JsonlOptions(seqLen, false, lossOn, penumbra.model().vocabSize()));
            LoraAdapter with = adapter == null ? null : penumbra.readAdapter(adapter);
            double mean = Evaluator.loss(penumbra.model(), with, dataset, batchSize, seqLen);
            spec.commandLine().getOut().printf("loss %.4f  perplexity %.3f%n", mean, Math.exp(mean));
        }
        return 0;
    }
}
