package dev.penumbra.jmh;

import dev.penumbra.backend.Device;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/**
 * One side of a comparison: training in a process of its own, so that its peak memory is its own, and what that printed.
 *
 * @param ms median of the measured steps
 * @param tokensPerSecond tokens that are no padding, median of the measured steps
 * @param peakMib on the CPU the process's largest resident size, on a GPU the most memory that was taken there
 * @param firstLoss loss of the first step
 * @param othersShare share of the machine's processors that other processes used meanwhile
 */
record Side(double ms, double tokensPerSecond, double peakMib, double firstLoss, JsonNode versions,
        double othersShare) {

    /** What {@code --turns} is. */
    static final String TURNS = "On the CPU, Penumbra's variants, each in a process of its own, take so many turns of two steps"
            + " that are measured, after forty that are not; 0: one after the other, --warmup and --steps each.";

    /** What Penumbra's own dense step is called. */
    static final String DENSE = "Penumbra, dense";

    private static final Path PEER = Results.module().resolve("peers/hf_peft.py");

    /** Steps of a turn: what else a machine does changes within seconds, and a first step finds its data in no cache. */
    private static final int TURN = 2;

    /** Steps before those that are measured in turns: meanwhile the JVM compiles most of what it will. */
    private static final int TURNS_WARMUP = 40;

    /**
     * What is timed.
     *
     * @param warmup steps before
     * @param measured steps
     * @param turns of {@link #TURN} steps, of Penumbra's sides on the CPU, in place of the above; 0: they take none
     */
    record Steps(int warmup, int measured, int turns) {
    }

    /**
     * Trains with Penumbra in each of several ways. On the CPU they take turns, so that what else the machine does meanwhile
     * bears on all alike. On a GPU, where each is told how much memory it takes, one is done before the next begins.
     */
    static List<Side> penumbra(List<List<String>> ways, Device.Kind device, Steps steps)
            throws IOException, InterruptedException {
        List<Side> sides = new ArrayList<>();
        if (device != Device.Kind.CPU || steps.turns() == 0) {
            for (List<String> options : ways) {
                sides.add(run("Penumbra", penumbraCommand(options, steps.warmup(), steps.measured())));
            }
            return sides;
        }
        List<List<String>> commands = new ArrayList<>();
        for (List<String> options : ways) {
            List<String> command = penumbraCommand(options, TURNS_WARMUP, steps.turns() * TURN);
            command.addAll(List.of("--turn", "" + TURN));
            commands.add(command);
        }
        OtherWork others = OtherWork.watch();
        List<String> lines = Turns.run(commands);
        double othersShare = others.share();
        for (String line : lines) {
            sides.add(side("Penumbra", line, othersShare));
        }
        return sides;
    }

    private static List<String> penumbraCommand(List<String> options, int warmup, int steps) {
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "--enable-native-access=ALL-UNNAMED",
                "-cp", System.getProperty("java.class.path"),
                Main.class.getName(), "steps", "--warmup", "" + warmup, "--steps", "" + steps));
        command.addAll(options);
        return command;
    }

    /** Trains with each of the peer's variants and keeps the fastest. */
    static Side fastestPeft(List<String> options, List<String> variants, Steps steps)
            throws IOException, InterruptedException {
        List<Side> sides = new ArrayList<>();
        for (String variant : variants) {
            List<String> with = new ArrayList<>(options);
            with.addAll(List.of("--variant", variant, "--warmup", "" + steps.warmup(), "--steps", "" + steps.measured()));
            sides.add(peft(with));
        }
        return Collections.min(sides, Comparator.comparingDouble(Side::ms));
    }

    /** Trains with transformers + PEFT, by the Python that PENUMBRA_PYTHON names. */
    private static Side peft(List<String> options) throws IOException, InterruptedException {
        List<String> command = new ArrayList<>(
                List.of(System.getenv().getOrDefault("PENUMBRA_PYTHON", "python3"), PEER.toString()));
        command.addAll(options);
        return run("transformers + PEFT", command);
    }

    private static Side run(String name, List<String> command) throws IOException, InterruptedException {
        OtherWork others = OtherWork.watch();
        Process process = new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        List<String> lines = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8).lines().toList();
        int status = process.waitFor();
        double othersShare = others.share();
        if (status != 0 || lines.isEmpty()) {
            throw new IOException("expected " + name + " to print a line of JSON, found exit status " + status + " of "
                    + String.join(" ", command));
        }
        return side(name, lines.getLast(), othersShare);
    }

    private static Side side(String name, String line, double othersShare) throws IOException {
        System.out.printf(Locale.ROOT, "%-20s %s, other processes took %.1f %%%n", name, line, 100 * othersShare);
        try {
            JsonNode result = new JsonMapper().readTree(line);
            return new Side(result.required("ms").doubleValue(), result.required("real_tokens_per_s").doubleValue(),
                    result.required("peak_mib").doubleValue(), result.required("first_loss").doubleValue(),
                    result.required("versions"), othersShare);
        } catch (JacksonException broken) {
            throw new IOException("expected " + name + " to print a line of JSON, found " + line, broken);
        }
    }
}
