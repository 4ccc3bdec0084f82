package dev.penumbra.cli;

import dev.penumbra.Penumbra;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.Tokenizer;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.train.Generator;
import java.io.IOException;
import java.nio.file.Path;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;

/** Continues a prompt. */
@Command(name = "generate", description = "Continue a prompt.", mixinStandardHelpOptions = true, showDefaultValues = true)
final class GenerateCommand implements Callable<Integer> {

    @Mixin
    private ModelOptions options;

    @Option(names = "--adapter", paramLabel = "DIR", description = "Folder of a PEFT adapter; without it, the model alone.")
    private @Nullable Path adapter;

    @Option(names = "--prompt", required = true, paramLabel = "TEXT", description = "What is continued.")
    private String prompt;

    @Option(names = "--length", defaultValue = "64", paramLabel = "N", description = "Most new tokens; the model's positions end a text too.")
    private int length;

    @Option(names = "--temperature", defaultValue = "0", paramLabel = "T", description = "What the logits are divided by before a token is drawn; 0: always the likeliest.")
    private double temperature;

    @Option(names = "--top-p", defaultValue = "1", paramLabel = "P", description = "Draw among the likeliest tokens that together have this chance; with --temperature.")
    private double topP;

    @Option(names = "--seed", defaultValue = "42", paramLabel = "N", description = "Equal seeds draw equal tokens; with --temperature.")
    private long seed;

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() throws IOException {
        CommandLine line = spec.commandLine();
        options.check(line);
        Usage.require(line, length >= 0, "a length of 0 or more", length);
        Usage.require(line, temperature >= 0, "a temperature of 0 or more", temperature);
        Usage.require(line, topP > 0 && topP <= 1, "a top-p above 0, at most 1", topP);
        Usage.requireFor(line, temperature > 0, "a --temperature above 0", "0, which draws nothing", "--top-p", "--seed");
        try (Tokenizer tokenizer = HfTokenizer.load(options.model); Penumbra penumbra = options.load()) {
            LoraAdapter with = adapter == null ? null : penumbra.readAdapter(adapter);
            Generator generator = new Generator(penumbra.model(), with, tokenizer.eosId());
            int[] made = generator.generate(prompt(tokenizer, prompt), length, temperature, topP, seed);
            spec.commandLine().getOut().println(prompt + tokenizer.decode(made));
        }
        return 0;
    }

    /** The start token, and the text's. */
    static int[] prompt(Tokenizer tokenizer, String text) {
        int[] encoded = tokenizer.encode(text);
        int[] ids = new int[encoded.length + 1];
        ids[0] = tokenizer.bosId();
        System.arraycopy(encoded, 0, ids, 1, encoded.length);
        return ids;
    }
}
