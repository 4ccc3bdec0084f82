package dev.penumbra.jmh;

import dev.penumbra.backend.Device;
import dev.penumbra.jmh.Comparison.Unit;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;

/** A step, dense and sparse, beside PEFT's: the same weights, the same tokens, the same of them supervised. */
@Command(name = "step-vs-peft", description = "Time a LoRA step beside transformers + PEFT, on the same random model and tokens.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class StepVsPeftCommand implements Callable<Integer> {

    /** The relative difference that bf16 arithmetic may make; more says that the two computed something else. */
    private static final double LOSS_TOLERANCE = 1e-3;

    @Option(names = "--shape", defaultValue = "OPT_125M", description = "${COMPLETION-CANDIDATES}")
    private ModelShape shape;
    @Option(names = "--batch-size", defaultValue = "2", description = "Rows.")
    private int batchSize;
    @Option(names = "--seq-len", defaultValue = "512", description = "Tokens of a row.")
    private int seqLen;
    @Option(names = "--supervised", defaultValue = "1", description = "Part of a row's tokens that are supervised, its last ones.")
    private double supervised;
    @Option(names = "--dtype", defaultValue = "BF16", description = "BF16 or F32")
    private DType dtype;
    @Option(names = "--device", defaultValue = "CPU", description = "${COMPLETION-CANDIDATES}")
    private Device.Kind device;
    @Option(names = "--variants", defaultValue = "tuned", split = ",", description = "PEFT's; the fastest counts: f32-adapters, tuned, compiled.")
    private List<String> variants;
    @Option(names = "--warmup", defaultValue = "2", description = "Steps before them.")
    private int warmup;
    @Option(names = "--threads", defaultValue = "2", description = "CPU threads.")
    private int threads;
    @Option(names = "--steps", defaultValue = "7", description = "Steps that are measured.")
    private int steps;
    @Option(names = "--sparsity-passes", split = ",", description = "Time steps too that compute only --budget of the MLP's blocks and --attention-budget of attention's: ${COMPLETION-CANDIDATES}.")
    private List<Pass> sparsityPasses = List.of();
    @Option(names = "--budget", defaultValue = "0.25", description = "Part of the MLP's blocks; 1: dense.")
    private double budget;
    @Option(names = "--attention-budget", defaultValue = "1", split = ",", description = "Part of attention's blocks on and below the diagonals, 1 for dense; of several each is timed.")
    private List<Double> attentionBudgets;
    @Option(names = "--attention-block", defaultValue = "128", description = "Rows of an attention block.")
    private int attentionBlock;
    @Option(names = "--mlp-block", defaultValue = "128", description = "Neurons of a block.")
    private int block;
    @Option(names = "--offload-layers", split = ",", description = "Time dense steps too with activations of so many layers in host memory, instead of as many as cost hardly any time; of several each is timed.")
    private List<Integer> offloadLayers = List.of();
    @Option(names = "--turns", defaultValue = "12", description = Side.TURNS)
    private int turns;
    @Option(names = "--record", description = "Write jmh/results/<device>-step-<model>-<rows>x<tokens>[-supervised-<part>].json.")
    private boolean record;
    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws Exception {
        if (!sparsityPasses.isEmpty() && budget == 1 && attentionBudgets.contains(1.0)) {
            throw new ParameterException(spec.commandLine(),
                    "expected --budget or --attention-budget below 1 with --sparsity-passes, found 1 of each");
        }
        if (!(supervised > 0 && supervised <= 1)) {
            throw new ParameterException(spec.commandLine(),
                    "expected --supervised above 0 and at most 1, found " + supervised);
        }
        Path model = RandomOpt.folder(shape, ModelShape.positions(seqLen));
        Path data = RandomOpt.tokens(shape, 2 * batchSize, seqLen, supervised);
        List<String> options = List.of(
                "--model", model.toString(), "--data", data.toString(), "--loss", "COMPLETION",
                "--batch-size", "" + batchSize, "--seq-len", "" + seqLen, "--dtype", dtype.name(),
                "--device", device.name(), "--threads", "" + threads);
        List<String> unpadded = new ArrayList<>(options);
        unpadded.addAll(List.of("--pad", "none"));
        List<String> names = new ArrayList<>(List.of(Side.DENSE));
        List<List<String>> ways = new ArrayList<>(List.of(options));
        for (int layers : offloadLayers) {
            List<String> with = new ArrayList<>(options);
            with.addAll(List.of("--offload-layers", "" + layers));
            names.add(Side.DENSE + ", " + layers + " layers offloaded");
            ways.add(with);
        }
        for (double attentionBudget : attentionBudgets) {
            for (Pass pass : sparsityPasses) {
                List<String> with = new ArrayList<>(options);
                with.addAll(List.of("--sparsity-pass", pass.name(), "--budget", "" + budget, "--mlp-block", "" + block,
                        "--attention-budget", "" + attentionBudget, "--attention-block", "" + attentionBlock));
                names.add(DeclaredSparsity.name(pass, budget, attentionBudget));
                ways.add(with);
            }
        }
        Side.Steps timed = new Side.Steps(warmup, steps, turns);
        List<Side> ours = Side.penumbra(ways, device, timed);
        double firstLoss = ours.getFirst().firstLoss();
        Side peer = Side.fastestPeft(unpadded, variants, timed);
        if (Math.abs(firstLoss - peer.firstLoss()) > LOSS_TOLERANCE * peer.firstLoss()) {
            throw new IllegalStateException("expected both to compute the same first loss, found " + firstLoss
                    + " here and " + peer.firstLoss() + " with PEFT");
        }
        String name = String.format(Locale.ROOT, "%s-step-%s-%dx%d%s", device.name().toLowerCase(Locale.ROOT),
                shape.checkpoint, batchSize, seqLen, supervised == 1 ? "" : "-supervised-" + supervised);
        String what = String.format(Locale.ROOT, "LoRA step, %s, %d x %d%s, %s, %s", shape.checkpoint, batchSize, seqLen,
                supervised == 1 ? "" : ", " + supervised + " of the tokens supervised",
                dtype.name().toLowerCase(Locale.ROOT), device == Device.Kind.CPU ? threads + " threads" : "GPU");
        Comparison comparison = new Comparison(Results.command(spec), what, Unit.MS).peer("PEFT", peer);
        for (int i = 0; i < ours.size(); i++) {
            comparison.ours(names.get(i), ours.get(i));
        }
        comparison.finish(name, device, record);
        return 0;
    }
}
