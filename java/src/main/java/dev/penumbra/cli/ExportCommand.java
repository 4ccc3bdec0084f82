package dev.penumbra.cli;

import dev.penumbra.io.ModelExporter;
import dev.penumbra.io.ModelFolder;
import dev.penumbra.io.PeftAdapter;
import java.io.IOException;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Merges an adapter into its base model. */
@Command(name = "export", description = "Merge an adapter into a full model folder.", mixinStandardHelpOptions = true)
final class ExportCommand implements Callable<Integer> {

    @Option(names = "--model", required = true, paramLabel = "DIR", description = "Hugging Face model folder.")
    private Path model;

    @Option(names = "--adapter", required = true, paramLabel = "DIR", description = "Folder of a PEFT adapter.")
    private Path adapter;

    @Option(names = "--output", required = true, paramLabel = "DIR", description = "The merged model folder.")
    private Path output;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        try (ModelFolder base = ModelFolder.open(model); PeftAdapter lora = PeftAdapter.read(adapter)) {
            ModelExporter.merge(base, lora, output);
        }
        spec.commandLine().getOut().println("merged model: " + output);
        return 0;
    }
}
