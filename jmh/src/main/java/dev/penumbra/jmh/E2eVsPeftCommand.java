package dev.penumbra.jmh;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** Real tokens a second on a file of short samples: packed rows beside PEFT's padded ones. */
@Command(name = "e2e-vs-peft", description = "Real tokens/s on a file of short samples: packed at 512 beside PEFT padded to 512 and to each batch's longest.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class E2eVsPeftCommand implements Callable<Integer> {

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines of {\"context\": [ids], \"completion\": [ids]}.")
    private Path data;
    @Option(names = "--shape", defaultValue = "OPT_125M", description = "${COMPLETION-CANDIDATES}")
    private ModelShape shape;
    @Option(names = "--threads", defaultValue = "2", description = "CPU threads.")
    private int threads;
    @Option(names = "--steps", defaultValue = "5", description = "Steps that are measured.")
    private int steps;
    @Option(names = "--batch-size", defaultValue = "2", description = "Rows of 512 tokens a step.")
    private int batchSize;
    @Option(names = "--longest-batch-size", defaultValue = "16", description = "Samples a step where PEFT pads to the longest: as many real tokens as the packed rows have, or more.")
    private int longestBatchSize;
    @Option(names = "--record", description = "Write jmh/results/cpu-e2e-vs-peft.json.")
    private boolean record;

    @Override
    public Integer call() throws Exception {
        Path model = RandomOpt.folder(shape);
        List<String> options = List.of(
                "--model", model.toString(), "--data", data.toAbsolutePath().toString(), "--shuffle",
                "--seq-len", "512", "--threads", "" + threads, "--steps", "" + steps);
        Side ours = Side.penumbra(with(options, "--batch-size", "" + batchSize));
        Side padded = Side.peft(with(options, "--batch-size", "" + batchSize, "--pad", "512"));
        Side longest = Side.peft(with(options, "--batch-size", "" + longestBatchSize, "--pad", "longest"));
        Comparison comparison = new Comparison("jmh/run e2e-vs-peft --data " + data.getFileName(), ours, padded)
                .moreIsBetter("E2E, packed at 512, PEFT padded to 512", "tokens/s", ours.tokensPerSecond(),
                        padded.tokensPerSecond())
                .moreIsBetter("E2E, packed at 512, PEFT padded to each batch's longest", "tokens/s", ours.tokensPerSecond(),
                        longest.tokensPerSecond())
                .print();
        if (record) {
            comparison.record("cpu-e2e-vs-peft");
        }
        return 0;
    }

    private static List<String> with(List<String> options, String... more) {
        List<String> all = new ArrayList<>(options);
        all.addAll(List.of(more));
        return all;
    }
}
