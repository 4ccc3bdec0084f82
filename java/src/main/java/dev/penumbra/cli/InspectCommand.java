package dev.penumbra.cli;

import dev.penumbra.data.Batch;
import dev.penumbra.data.Batches;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.JsonlOptions;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.data.JsonlReader;
import dev.penumbra.data.Sample;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.io.ModelFolder;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.Locale;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Shows what a training run would see: samples with their supervised tokens marked, packing, lengths. */
@Command(name = "inspect", description = "Show samples with supervised tokens in [brackets], packing efficiency and the lengths of samples.", mixinStandardHelpOptions = true)
final class InspectCommand implements Callable<Integer> {

    private static final int HISTOGRAM_BINS = 8;

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder.")
    private Path model;

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines.")
    private Path data;

    @Option(names = "--seq-len", defaultValue = "512", description = "Longest row, in tokens (default: ${DEFAULT-VALUE}).")
    private int seqLen;

    @Option(names = "--batch-size", defaultValue = "4", description = "Rows of a batch (default: ${DEFAULT-VALUE}).")
    private int batchSize;

    @Option(names = "--loss", defaultValue = "completion", description = "completion or all (default: ${DEFAULT-VALUE}).")
    private String loss;

    @Option(names = "--truncate", description = "Cut longer samples instead of refusing them.")
    private boolean truncate;

    @Option(names = "--no-pack", description = "One sample a row, padded to the batch's longest.")
    private boolean noPack;

    @Option(names = "--samples", defaultValue = "3", description = "How many samples to print (default: ${DEFAULT-VALUE}).")
    private int samples;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        LossOn lossOn = switch (loss) {
            case "completion" -> LossOn.COMPLETION;
            case "all" -> LossOn.ALL;
            default -> throw new IllegalArgumentException("--loss: expected completion or all, found " + loss);
        };
        try (ModelFolder folder = ModelFolder.open(model);
                Tokenizer tokenizer = HfTokenizer.load(model)) {
            int vocabSize = folder.config().path("vocab_size").asInt();
            Dataset dataset = JsonlReader.read(data, tokenizer, new JsonlOptions(seqLen, truncate, lossOn, vocabSize));
            for (int i = 0; i < Math.min(samples, dataset.size()); i++) {
                out.println(dataset.describe(i));
                out.println(marked(dataset.get(i), tokenizer));
            }
            printLengths(out, dataset);
            printPacking(out, dataset, tokenizer.padId());
        }
        out.flush();
        return 0;
    }

    /** A sample's text, runs of supervised tokens in brackets. */
    private static String marked(Sample sample, Tokenizer tokenizer) {
        StringBuilder text = new StringBuilder();
        int from = 0;
        while (from < sample.length()) {
            int to = from;
            while (to < sample.length() && sample.supervised()[to] == sample.supervised()[from]) {
                to++;
            }
            String run = tokenizer.decode(java.util.Arrays.copyOfRange(sample.ids(), from, to));
            text.append(sample.supervised()[from] ? "[" + run + "]" : run);
            from = to;
        }
        return text.toString();
    }

    private static void printLengths(PrintWriter out, Dataset dataset) {
        int longest = 1;
        long tokens = 0;
        for (int i = 0; i < dataset.size(); i++) {
            longest = Math.max(longest, dataset.get(i).length());
            tokens += dataset.get(i).length();
        }
        int width = Math.ceilDiv(longest, HISTOGRAM_BINS);
        int[] counts = new int[HISTOGRAM_BINS];
        for (int i = 0; i < dataset.size(); i++) {
            counts[(dataset.get(i).length() - 1) / width]++;
        }
        out.printf(Locale.ROOT, "%d samples, %d tokens, %.1f a sample, longest %d%n", dataset.size(), tokens,
                (double) tokens / dataset.size(), longest);
        for (int bin = 0; bin < HISTOGRAM_BINS; bin++) {
            out.printf("  %5d to %5d tokens: %d%n", bin * width + 1, (bin + 1) * width, counts[bin]);
        }
    }

    private void printPacking(PrintWriter out, Dataset dataset, int padId) {
        Batches batches = new Batches(dataset, batchSize, seqLen, !noPack, false, 0, padId);
        long real = 0;
        long rows = 0;
        for (int i = 0; i < batches.batchesPerEpoch(); i++) {
            Batch batch = batches.next();
            real += batch.realTokens();
            rows += noPack ? batch.samples() : batchSize;
        }
        out.printf(
                Locale.ROOT,
                "%d batches of at most %d x %d tokens; %.1f%% of that room holds real tokens%n",
                batches.batchesPerEpoch(),
                batchSize,
                seqLen,
                100.0 * real / (rows * seqLen));
    }
}
