package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.expose.Calibration;
import dev.penumbra.expose.CalibrationConfig;
import dev.penumbra.expose.Calibrator;
import dev.penumbra.io.AtomicFiles;
import dev.penumbra.io.RunLock;
import java.io.IOException;
import java.io.PrintWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Finds out what a model's MLPs and attention use, and writes it for sparse training. */
@Command(name = "calibrate", description = "Run the frozen model over sample text: which neurons it uses, in which order they are best kept, which blocks its heads attend to, and predictors of what a batch will need.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class CalibrateCommand implements Callable<Integer> {

    @Mixin
    private ModelOptions options;

    @Mixin
    private DataOptions data;

    @Option(names = "--output", required = true, paramLabel = "DIR", description = "Where calibration.safetensors and calibration.txt go.")
    private Path output;
    @Option(names = "--batches", defaultValue = "32", paramLabel = "N", description = "Most batches of the data that the calibration is made from.")
    private int batches;
    @Option(names = "--held-out-batches", defaultValue = "8", paramLabel = "N", description = "Most batches of other text that figures are measured on.")
    private int heldOutBatches;
    @Option(names = "--batch-size", defaultValue = "4", paramLabel = "B", description = "Rows of a batch.")
    private int batchSize;
    @Option(names = "--mlp-block", defaultValue = "32", paramLabel = "N", description = "Neurons of a block: 32, 64 or 128. Sparse training may use this size or a larger one.")
    private int block;
    @Option(names = "--list-rows", defaultValue = "256", paramLabel = "N", description = "Neighbouring tokens whose blocks are looked at together.")
    private int listRows;
    @Option(names = "--pool-rows", defaultValue = "16", paramLabel = "N", description = "Tokens over which the input of an MLP's predictor is averaged.")
    private int poolRows;
    @Option(names = "--rank", defaultValue = "64", paramLabel = "R", description = "Rank of the MLPs' predictors.")
    private int rank;
    @Option(names = "--coverage", defaultValue = "0.99", paramLabel = "X", description = "Part of the mass that is to be kept: a layer that needs nearly all blocks for it is marked dense.")
    private double coverage;
    @Option(names = "--budget", defaultValue = "0.5", paramLabel = "X", description = "Part of the MLPs' blocks that orders and predictors are compared at.")
    private double budget;
    @Option(names = "--epochs", defaultValue = "8", paramLabel = "N", description = "Passes of the predictors' training over their samples; 0: the closed form alone.")
    private int epochs;
    @Option(names = "--noise", defaultValue = "0.05", paramLabel = "X", description = "What perturbs the predictors' inputs in training, as a part of the inputs' own deviation.")
    private double noise;
    @Option(names = "--drift", defaultValue = "0.1", paramLabel = "X", description = "Largest size of the random adapters that some batches run with, so that predictors hold while a model is tuned; as a part of the weights'.")
    private double drift;
    @Option(names = "--attention-block", defaultValue = "128", paramLabel = "N", description = "Tokens of an attention block: 128, 64, or 0 to leave attention alone. Samples of two blocks or more are looked at.")
    private int attentionBlock;
    @Option(names = "--attention-budget", defaultValue = "0.3", paramLabel = "X", description = "Part of the attention blocks on and below the diagonal that layouts and predictors are compared at.")
    private double attentionBudget;
    @Option(names = "--attention-rank", defaultValue = "16", paramLabel = "R", description = "Rank of the attention predictors: a multiple of 8, at most 64.")
    private int attentionRank;
    @Option(names = "--attention-pool-rows", defaultValue = "32", paramLabel = "N", description = "Tokens over which an attention predictor's input is averaged.")
    private int attentionPoolRows;
    @Option(names = "--seed", defaultValue = "42", paramLabel = "N", description = "Of the batches' order and all that is drawn.")
    private long seed;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        PrintWriter out = spec.commandLine().getOut();
        options.check(spec.commandLine());
        Usage.requireFor(spec.commandLine(), attentionBlock != 0, "an --attention-block of 64 or 128",
                "0, which leaves attention alone", "--attention-budget", "--attention-rank", "--attention-pool-rows");
        CalibrationConfig config = config();
        if (Files.exists(output.resolve(Calibration.FILE))) {
            throw new IOException(output + ": expected a folder without a calibration, found " + Calibration.FILE
                    + ": move it away or choose another folder");
        }
        try (RunLock alone = RunLock.acquire(output);
                Tokenizer tokenizer = HfTokenizer.load(options.model);
                Penumbra penumbra = options.open()) {
            Dataset samples = data.read(tokenizer, penumbra.model().vocabSize());
            penumbra.model().load();
            Calibration calibration = Calibrator.calibrate(penumbra.model(), penumbra.folder(), samples, config, output,
                    line -> {
                        out.println(line);
                        out.flush();
                    });
            String report = CalibrationReport.of(calibration.manifest());
            AtomicFiles.writeString(output.resolve("calibration.txt"), report);
            out.print(report);
            out.println("saved " + output.resolve(Calibration.FILE));
        }
        return 0;
    }

    private CalibrationConfig config() {
        return Usage.of(spec.commandLine(),
                () -> new CalibrationConfig(batches, heldOutBatches, batchSize, data.seqLen, block,
                        listRows, poolRows, rank, coverage, budget, epochs, noise, drift, seed,
                        new CalibrationConfig.Attention(attentionBlock, attentionPoolRows, attentionRank, attentionBudget)));
    }
}
