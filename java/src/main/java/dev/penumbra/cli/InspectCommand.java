package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.PackingReport;
import dev.penumbra.data.SampleRenderer;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.expose.AttentionCalibration;
import dev.penumbra.expose.AttentionLook;
import dev.penumbra.expose.Calibration;
import dev.penumbra.expose.CalibrationException;
import dev.penumbra.internal.Counted;
import dev.penumbra.io.AtomicFiles;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.OptConfig;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** Shows what a training run would see: samples with their supervised tokens marked, packing, lengths, and attention. */
@Command(name = "inspect", description = "Show samples with supervised tokens in [[brackets]], packing efficiency and the lengths of samples; or, with --attention, draw which blocks a sample's heads attend to.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class InspectCommand implements Callable<Integer> {

    private static final int HISTOGRAM_COLUMNS = 40;

    @Mixin
    private ModelOptions options;

    @Mixin
    private DataOptions data;

    @Option(names = "--samples", defaultValue = "3", paramLabel = "N", description = "How many samples to print; without --attention.")
    private int samples;

    @Option(names = "--attention", description = "Run one sample and draw its attention into --output, by what --calibration knows.")
    private boolean attention;
    @Option(names = "--calibration", paramLabel = "DIR", description = "What penumbra calibrate wrote for this model; with --attention.")
    private @Nullable Path calibration;
    @Option(names = "--adapter", paramLabel = "DIR", description = "A PEFT adapter that the sample runs under; with --attention.")
    private @Nullable Path adapter;
    @Option(names = "--output", paramLabel = "FILE", description = "The page that is written, HTML; with --attention.")
    private @Nullable Path output;
    @Option(names = "--sample", paramLabel = "N", description = "Which sample, from 0; with --attention. Without it, the longest that the calibration knows.")
    private @Nullable Integer sample;
    @Option(names = "--coverage", defaultValue = "1", paramLabel = "X", description = "Part of the expected mass that is to be kept; with --attention.")
    private double coverage;
    @Option(names = "--budget", paramLabel = "X", description = "Largest part of the blocks on and below the diagonal; with --attention. Without it, the calibration's.")
    private @Nullable Double budget;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        options.check(spec.commandLine());
        data.check(spec.commandLine());
        if (attention) {
            Usage.requireFor(spec.commandLine(), false, "no --attention", "it: one --sample is drawn", "--samples");
            return drawAttention();
        }
        Usage.requireFor(spec.commandLine(), false, "--attention", "none: nothing is computed", "--calibration", "--adapter",
                "--output", "--sample", "--coverage", "--budget", "--device", "--dtype", "--threads");
        Usage.require(spec.commandLine(), samples >= 0, "a number of samples of 0 or more", samples);
        PrintWriter out = spec.commandLine().getOut();
        try (ModelFolder folder = ModelFolder.open(options.model);
                Tokenizer tokenizer = HfTokenizer.load(options.model)) {
            Dataset dataset = data.read(tokenizer,
                    OptConfig.parse(folder.config(), options.model.resolve("config.json").toString()).vocabSize());
            for (int i = 0; i < Math.min(samples, dataset.size()); i++) {
                out.println(dataset.describe(i));
                out.println(SampleRenderer.render(dataset.get(i), tokenizer));
            }
            PackingReport packing = PackingReport.of(dataset, data.seqLen, 0);
            out.print(packing.histogramText(HISTOGRAM_COLUMNS));
            out.printf(Locale.ROOT,
                    "%s; rows of %d tokens hold %.1f%% real tokens packed, %.1f%% one sample a row%n",
                    Counted.of(packing.samples(), "sample"), data.seqLen, 100 * packing.efficiency(),
                    100 * packing.paddedEfficiency());
            if (packing.samples() < dataset.size()) {
                out.println(Counted.of(dataset.size() - packing.samples(), "other sample")
                        + " without a supervised token, left out of training and evaluation");
            }
        }
        out.flush();
        return 0;
    }

    private int drawAttention() throws IOException {
        if (calibration == null || output == null) {
            throw wrong("expected --calibration DIR and --output FILE with --attention, found "
                    + (calibration == null ? "no --calibration" : "no --output"));
        }
        if (!(coverage > 0 && coverage <= 1)) {
            throw wrong("expected a --coverage above 0, at most 1, found " + coverage);
        }
        if (budget != null && !(budget > 0 && budget <= 1)) {
            throw wrong("expected a --budget above 0, at most 1, found " + budget);
        }
        PrintWriter out = spec.commandLine().getOut();
        try (Tokenizer tokenizer = HfTokenizer.load(options.model); Penumbra penumbra = options.open()) {
            AttentionCalibration known = Calibration.read(calibration, penumbra.folder()).attention()
                    .orElseThrow(() -> new CalibrationException(calibration
                            + ": expected what is known of attention, found none: calibrate with samples of two attention blocks or more"));
            Dataset dataset = data.read(tokenizer, penumbra.model().vocabSize());
            int index = sample == null ? AttentionPage.longest(dataset, known) : sample;
            if (index < 0 || index >= dataset.size()) {
                throw wrong("expected a --sample from 0 to " + (dataset.size() - 1) + ", found " + index);
            }
            double part = budget == null ? known.figures().budget() : budget;
            penumbra.model().load();
            LoraAdapter under = adapter == null ? null : penumbra.readAdapter(adapter);
            List<AttentionLook> looks;
            try {
                looks = AttentionLook.at(penumbra.model(), under, known, dataset.get(index), coverage, part);
            } catch (IllegalArgumentException tooShort) {
                throw wrong(dataset.describe(index) + ": " + tooShort.getMessage());
            }
            String about = String.format(Locale.ROOT, "%s: %d tokens in blocks of %d, coverage %s, budget %s%s",
                    dataset.describe(index), dataset.get(index).length(), known.blockSize(), coverage, part,
                    adapter == null ? "" : ", under the adapter " + adapter);
            String name = String.valueOf(options.model.toAbsolutePath().normalize().getFileName());
            AtomicFiles.writeString(output, AttentionPage.html("Attention of " + name, about, looks, known.pool()));
            out.println(about);
            looks.forEach(out::println);
            out.println("saved " + output);
        }
        out.flush();
        return 0;
    }

    private ParameterException wrong(String message) {
        return new ParameterException(spec.commandLine(), message);
    }
}
