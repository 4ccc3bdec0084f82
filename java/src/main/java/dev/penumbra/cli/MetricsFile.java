package dev.penumbra.cli;

import dev.penumbra.train.StepListener;
import dev.penumbra.train.StepMetrics;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.io.Writer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.node.ObjectNode;

/** One JSON object a step, flushed at once so that a killed run leaves its lines. */
final class MetricsFile implements StepListener, AutoCloseable {

    private static final JsonMapper JSON = new JsonMapper();

    private final Writer writer;

    /** @param append keep the lines of the run that is resumed */
    MetricsFile(Path file, boolean append) throws IOException {
        writer = append
                ? Files.newBufferedWriter(file, StandardOpenOption.CREATE, StandardOpenOption.APPEND)
                : Files.newBufferedWriter(file);
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
        try {
            writer.write(line + "\n");
            writer.flush();
        } catch (IOException failure) {
            throw new UncheckedIOException(failure.getMessage(), failure);
        }
    }

    @Override
    public void close() throws IOException {
        writer.close();
    }
}
