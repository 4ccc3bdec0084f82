package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.train.Generator;
import java.io.IOException;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Continues a prompt. */
@Command(name = "generate", description = "Continue a prompt.", mixinStandardHelpOptions = true)
final class GenerateCommand implements Callable<Integer> {

    @Mixin
    private ModelOptions options;

    @Option(names = "--adapter", paramLabel = "DIR", description = "PEFT adapter.")
    private Path adapter;

    @Option(names = "--prompt", required = true)
    private String prompt;

    @Option(names = "--length", defaultValue = "64", description = "Most new tokens (default: ${DEFAULT-VALUE}).")
    private int length;

    @Option(names = "--temperature", defaultValue = "0", description = "0: always the likeliest token.")
    private double temperature;

    @Option(names = "--top-p", defaultValue = "1")
    private double topP;

    @Option(names = "--seed", defaultValue = "42")
    private long seed;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        try (Tokenizer tokenizer = HfTokenizer.load(options.model); Penumbra penumbra = options.load()) {
            LoraAdapter with = adapter == null ? null : penumbra.readAdapter(adapter);
            String text = continuation(penumbra, with, tokenizer, prompt, length, temperature, topP, seed);
            spec.commandLine().getOut().println(prompt + text);
        }
        return 0;
    }

    static String continuation(Penumbra penumbra, LoraAdapter adapter, Tokenizer tokenizer, String prompt, int length,
            double temperature, double topP, long seed) {
        int[] encoded = tokenizer.encode(prompt);
        int[] ids = new int[encoded.length + 1];
        ids[0] = tokenizer.bosId();
        System.arraycopy(encoded, 0, ids, 1, encoded.length);
        Generator generator = new Generator(penumbra.model(), adapter, tokenizer.eosId());
        return tokenizer.decode(generator.generate(ids, length, temperature, topP, seed));
    }
}
