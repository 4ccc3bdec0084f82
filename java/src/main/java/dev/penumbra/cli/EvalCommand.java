package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.train.Evaluator;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Prints loss and perplexity over a file. */
@Command(name = "eval", description = "Print loss and perplexity over JSON Lines.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class EvalCommand implements Callable<Integer> {

    @Mixin
    private ModelOptions options;

    @Mixin
    private DataOptions data;

    @Option(names = "--adapter", paramLabel = "DIR", description = "Folder of a PEFT adapter; without it, the model alone.")
    private @Nullable Path adapter;

    @Option(names = "--batch-size", defaultValue = "4", paramLabel = "B", description = "Rows of a batch.")
    private int batchSize;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        Usage.require(spec.commandLine(), batchSize >= 1, "a batch size of 1 or more", batchSize);
        options.check(spec.commandLine());
        data.check(spec.commandLine());
        try (Tokenizer tokenizer = HfTokenizer.load(options.model); Penumbra penumbra = options.load()) {
            Dataset samples = data.read(tokenizer, penumbra.model().vocabSize());
            LoraAdapter with = adapter == null ? null : penumbra.readAdapter(adapter);
            double mean = Evaluator.loss(penumbra.model(), with, samples, batchSize, data.seqLen);
            spec.commandLine().getOut().printf(Locale.ROOT, "loss %.4f  perplexity %.3f%n", mean, Math.exp(mean));
        }
        return 0;
    }
}
