package dev.penumbra.cli;

import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.JsonlOptions;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.data.JsonlReader;
import dev.penumbra.data.PackingReport;
import dev.penumbra.data.SampleRenderer;
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
@Command(name = "inspect", description = "Show samples with supervised tokens in [[brackets]], packing efficiency and the lengths of samples.", mixinStandardHelpOptions = true)
final class InspectCommand implements Callable<Integer> {

    private static final int HISTOGRAM_COLUMNS = 40;

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder.")
    private Path model;

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines.")
    private Path data;

    @Option(names = "--seq-len", defaultValue = "512", description = "Longest row, in tokens (default: ${DEFAULT-VALUE}).")
    private int seqLen;

    @Option(names = "--loss", defaultValue = "completion", description = "completion or all (default: ${DEFAULT-VALUE}).")
    private String loss;

    @Option(names = "--truncate", description = "Cut longer samples instead of refusing them.")
    private boolean truncate;

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
                out.println(SampleRenderer.render(dataset.get(i), tokenizer));
            }
            PackingReport packing = PackingReport.of(dataset, seqLen, 0);
            out.print(packing.histogramText(HISTOGRAM_COLUMNS));
            out.printf(Locale.ROOT,
                    "%d samples; rows of %d tokens hold %.1f%% real tokens packed, %.1f%% one sample a row%n",
                    dataset.size(), seqLen, 100 * packing.efficiency(), 100 * packing.paddedEfficiency());
        }
        out.flush();
        return 0;
    }
}
