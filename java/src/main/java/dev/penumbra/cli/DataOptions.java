package dev.penumbra.cli;

import dev.penumbra.data.Dataset;
import dev.penumbra.data.JsonlOptions;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.data.JsonlReader;
import dev.penumbra.data.Tokenizer;
import java.io.IOException;
import java.nio.file.Path;
import picocli.CommandLine;
import picocli.CommandLine.Option;

/** Which samples, and which of their tokens are supervised: the options that several commands share. */
final class DataOptions {

    @Option(names = "--data", required = true, paramLabel = "FILE", description = "JSON Lines: a line has text, or prompt and completion, or messages of role and content, or context and completion as token ids.")
    Path data;

    @Option(names = "--seq-len", defaultValue = "512", paramLabel = "N", description = "Tokens of a row, the most of a sample; at most the model's positions. A text that is longer becomes several samples.")
    int seqLen;

    @Option(names = "--truncate", description = "Cut other samples that are longer instead of refusing them.")
    boolean truncate;

    @Option(names = "--loss", defaultValue = "completion", paramLabel = "TOKENS", description = "Which tokens are supervised: completion or all.")
    LossOn loss;

    /** Refuses wrong usage, as far as it can be seen without opening anything. */
    void check(CommandLine line) {
        Usage.require(line, seqLen >= 2, "a sequence length of 2 or more", seqLen);
    }

    Dataset read(Tokenizer tokenizer, int vocabSize) throws IOException {
        return read(data, tokenizer, vocabSize);
    }

    /** Another file, read as {@code --data} is. */
    Dataset read(Path file, Tokenizer tokenizer, int vocabSize) throws IOException {
        return JsonlReader.read(file, tokenizer, new JsonlOptions(seqLen, truncate, loss, vocabSize));
    }
}
