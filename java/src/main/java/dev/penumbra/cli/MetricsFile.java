package dev.penumbra.cli;

import dev.penumbra.io.AtomicFiles;
import dev.penumbra.train.StepListener;
import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.StepSparsity;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import tools.jackson.core.JacksonException;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/**
 * One JSON object a step, flushed at once so that a killed run leaves its lines. What is in the file stays until the first step:
 * a run that is refused before it has not undone the one before.
 */
final class MetricsFile implements StepListener, AutoCloseable {

    private static final JsonMapper JSON = new JsonMapper();
    /** Of every line. */
    private static final String BEGINNING = "{\"step\":";

    private final Path file;
    private Writer writer;
    private boolean holdsOlder;

    /**
     * Opens a file for steps; of the lines in it, those of the steps before the first one that is told stay.
     *
     * @throws IOException naming the file when it is there and has something else, which stays as it is, or cannot be written
     */
    MetricsFile(Path file) throws IOException {
        this.file = file;
        Path folder = file.toAbsolutePath().getParent();
        if (!Files.isDirectory(folder)) {
            Files.createDirectories(folder);
        }
        holdsOlder = Files.isRegularFile(file);
        if (holdsOlder) {
            requireMetrics(file);
        }
        writer = Files.newBufferedWriter(file, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    }

    private static void requireMetrics(Path file) throws IOException {
        try (InputStream in = Files.newInputStream(file)) {
            String found = new String(in.readNBytes(BEGINNING.length()), StandardCharsets.ISO_8859_1);
            // A killed run may have got no further than into its first line.
            if (!BEGINNING.startsWith(found)) {
                throw new IOException(file + ": expected metrics of a run or no file, found a file of something else: choose"
                        + " another");
            }
        }
    }

    @Override
    public void onStep(StepMetrics step) {
        ObjectNode line = JSON.createObjectNode();
        line.put("step", step.step());
        line.put("loss", step.loss());
        line.put("lr", step.lr());
        line.put("grad_norm", step.gradNorm());
        line.put("real_tokens", step.realTokens());
        line.put("tokens_per_s", step.tokensPerSecond());
        line.put("step_ms", step.stepMs());
        if (step.sparsity() != null) {
            put(line, "mlp_", step.sparsity());
        }
        if (step.attention() != null) {
            put(line, "attention_", step.attention());
        }
        try {
            if (holdsOlder) {
                dropFrom(step.step());
                holdsOlder = false;
            }
            writer.write(line + "\n");
            writer.flush();
        } catch (IOException failure) {
            throw new UncheckedIOException(new IOException(file + ": " + failure.getMessage(), failure));
        }
    }

    private static void put(ObjectNode line, String of, StepSparsity sparsity) {
        line.put(of + "kept", sparsity.meanKept());
        line.put(of + "covered", sparsity.meanCovered());
        line.put(of + "cut", sparsity.meanCut());
        sparsity.kept().forEach(line.putArray(of + "kept_by_layer")::add);
        if (!sparsity.trueCoverage().isEmpty()) {
            line.put(of + "true_coverage", sparsity.meanTrueCoverage().orElse(1));
            sparsity.trueCoverage().forEach(line.putArray(of + "true_coverage_by_layer")::add);
        }
    }

    /** A resumed run: one that was killed got further than its last checkpoint, maybe to the middle of a line: those steps come again. */
    private void dropFrom(int firstStep) throws IOException {
        writer.close();
        if (firstStep == 1) {
            writer = Files.newBufferedWriter(file);
            return;
        }
        String kept;
        try (Stream<String> lines = Files.lines(file)) {
            kept = lines.filter(line -> isBefore(firstStep, line)).map(line -> line + "\n").collect(Collectors.joining());
        }
        AtomicFiles.writeString(file, kept);
        writer = Files.newBufferedWriter(file, StandardOpenOption.APPEND);
    }

    private static boolean isBefore(int firstStep, String line) {
        try {
            int step = JSON.readTree(line).path("step").asInt(firstStep);
            return step < firstStep;
        } catch (JacksonException cutOff) {
            return false;
        }
    }

    @Override
    public void close() throws IOException {
        writer.close();
    }
}
