package dev.penumbra.cli;

import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
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
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Shows what a training run would see: samples with their supervised tokens marked, packing, lengths. */
@Command(name = "inspect", description = "Show samples with supervised tokens in [[brackets]], packing efficiency and the lengths of samples.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class InspectCommand implements Callable<Integer> {

    private static final int HISTOGRAM_COLUMNS = 40;

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder.")
    private Path model;

    @Mixin
    private DataOptions data;

    @Option(names = "--samples", defaultValue = "3", paramLabel = "N", description = "How many samples to print.")
    private int samples;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        try (ModelFolder folder = ModelFolder.open(model);
                Tokenizer tokenizer = HfTokenizer.load(model)) {
            Dataset dataset = data.read(tokenizer, folder.config().path("vocab_size").asInt());
            for (int i = 0; i < Math.min(samples, dataset.size()); i++) {
                out.println(dataset.describe(i));
                out.println(SampleRenderer.render(dataset.get(i), tokenizer));
            }
            PackingReport packing = PackingReport.of(dataset, data.seqLen, 0);
            out.print(packing.histogramText(HISTOGRAM_COLUMNS));
            out.printf(Locale.ROOT,
                    "%d samples; rows of %d tokens hold %.1f%% real tokens packed, %.1f%% one sample a row%n",
                    dataset.size(), data.seqLen, 100 * packing.efficiency(), 100 * packing.paddedEfficiency());
        }
        out.flush();
        return 0;
    }
}
