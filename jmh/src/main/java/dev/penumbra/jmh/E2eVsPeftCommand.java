package dev.penumbra.jmh;

import dev.penumbra.backend.Device;
import dev.penumbra.jmh.Comparison.Unit;
import dev.penumbra.predict.SparsityConfig.Pass;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Real tokens a second on a file of short samples: packed rows, dense and sparse, beside PEFT's padded ones. */
@Command(name = "e2e-vs-peft", description = "Real tokens/s on a file of short samples: packed at 512 beside PEFT padded to 512 and to each batch's longest.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class E2eVsPeftCommand implements Callable<Integer> {

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines of {\"context\": [ids], \"completion\": [ids]}.")
    private Path data;
    @Option(names = "--shape", defaultValue = "OPT_125M", description = "${COMPLETION-CANDIDATES}")
    private ModelShape shape;
    @Option(names = "--device", defaultValue = "CPU", description = "${COMPLETION-CANDIDATES}")
    private Device.Kind device;
    @Option(names = "--padded-variants", defaultValue = "tuned", split = ",", description = "PEFT's, padded to 512; the fastest counts: f32-adapters, tuned, compiled.")
    private List<String> paddedVariants;
    @Option(names = "--warmup", defaultValue = "2", description = "Steps before them.")
    private int warmup;
    @Option(names = "--threads", defaultValue = "2", description = "CPU threads.")
    private int threads;
    @Option(names = "--steps", defaultValue = "5", description = "Steps that are measured.")
    private int steps;
    @Option(names = "--batch-size", defaultValue = "2", description = "Rows of 512 tokens a step.")
    private int batchSize;
    @Option(names = "--longest-batch-size", defaultValue = "16", description = "Samples a step where PEFT pads to the longest: as many real tokens as the packed rows have, or more.")
    private int longestBatchSize;
    @Option(names = "--sparsity-passes", split = ",", description = "Time steps too that compute only --budget of the MLP's blocks: ${COMPLETION-CANDIDATES}.")
    private List<Pass> sparsityPasses = List.of();
    @Option(names = "--budget", defaultValue = "0.25", description = "Part of the MLP's blocks.")
    private double budget;
    @Option(names = "--mlp-block", defaultValue = "128", description = "Neurons of a block.")
    private int block;
    @Option(names = "--turns", defaultValue = "12", description = Side.TURNS)
    private int turns;
    @Option(names = "--record", description = "Write jmh/results/<device>-e2e-<model>.json.")
    private boolean record;
    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws Exception {
        Path model = RandomOpt.folder(shape);
        List<String> options = List.of(
                "--model", model.toString(), "--data", data.toAbsolutePath().toString(), "--shuffle",
                "--seq-len", "512", "--device", device.name(), "--threads", "" + threads);
        List<String> packed = with(options, "--batch-size", "" + batchSize);
        List<String> names = new ArrayList<>(List.of(Side.DENSE));
        List<List<String>> ways = new ArrayList<>(List.of(packed));
        for (Pass pass : sparsityPasses) {
            names.add(DeclaredSparsity.name(pass, budget, 1));
            ways.add(with(packed, "--sparsity-pass", pass.name(), "--budget", "" + budget, "--mlp-block", "" + block));
        }
        Side.Steps timed = new Side.Steps(warmup, steps, turns);
        List<Side> ours = Side.penumbra(ways, device, timed);
        Side padded = Side.fastestPeft(with(options, "--batch-size", "" + batchSize, "--pad", "512"), paddedVariants, timed);
        Side longest = Side.fastestPeft(with(options, "--batch-size", "" + longestBatchSize, "--pad", "longest"),
                List.of("tuned"), timed);
        Comparison comparison = new Comparison(Results.command(spec),
                "E2E, " + shape.checkpoint + ", packed at 512", Unit.TOKENS_PER_SECOND)
                .peer("PEFT, padded to 512", padded)
                .peer("PEFT, padded to each batch's longest", longest);
        for (int i = 0; i < ours.size(); i++) {
            comparison.ours(names.get(i), ours.get(i));
        }
        comparison.finish(device.name().toLowerCase(Locale.ROOT) + "-e2e-" + shape.checkpoint, device, record);
        return 0;
    }

    private static List<String> with(List<String> options, String... more) {
        List<String> all = new ArrayList<>(options);
        all.addAll(List.of(more));
        return all;
    }
}
