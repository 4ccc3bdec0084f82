package dev.penumbra.jmh;

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

    /** What Penumbra's own dense step is called. */
    static final String DENSE = "Penumbra, dense";

    private static final Path PEER = Results.module().resolve("peers/hf_peft.py");

    /** Trains with Penumbra. */
    static Side penumbra(List<String> options) throws IOException, InterruptedException {
        List<String> command = new ArrayList<>(List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "--enable-native-access=ALL-UNNAMED",
                "-cp", System.getProperty("java.class.path"),
                Main.class.getName(), "steps"));
        command.addAll(options);
        return run("Penumbra", command);
    }

    /** Trains with each of the peer's variants and keeps the fastest. */
    static Side fastestPeft(List<String> options, List<String> variants) throws IOException, InterruptedException {
        List<Side> sides = new ArrayList<>();
        for (String variant : variants) {
            List<String> with = new ArrayList<>(options);
            with.addAll(List.of("--variant", variant));
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
        System.out.printf(Locale.ROOT, "%-20s %s, other processes took %.1f %%%n", name, lines.getLast(), 100 * othersShare);
        try {
            JsonNode result = new JsonMapper().readTree(lines.getLast());
            return new Side(result.required("ms").doubleValue(), result.required("real_tokens_per_s").doubleValue(),
                    result.required("peak_mib").doubleValue(), result.required("first_loss").doubleValue(),
                    result.required("versions"), othersShare);
        } catch (JacksonException broken) {
            throw new IOException("expected " + name + " to print a line of JSON, found " + lines.getLast(), broken);
        }
    }
}
