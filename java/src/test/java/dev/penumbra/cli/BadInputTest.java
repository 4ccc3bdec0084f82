package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assumptions.assumeThatThrownBy;

import dev.penumbra.cli.Cli.Outcome;
import dev.penumbra.io.RunLock;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.SymbolLookup;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** What is wrong with the input is said in one line that names the file, line, tensor or option, with exit code 1. */
class BadInputTest {

    @TempDir
    Path folder;

    private Path model;
    private Path data;
    private Path output;

    @BeforeEach
    void goodInput() {
        model = Cli.model(folder);
        data = Cli.data(folder.resolve("data.jsonl"), 8);
        output = folder.resolve("out");
    }

    private Outcome train(String... more) {
        List<String> all = new ArrayList<>(
                List.of("train", "--model", model.toString(), "--data", data.toString(), "--output",
                        output.toString(), "--steps", "2", "--threads", "1"));
        all.addAll(Arrays.asList(more));
        return Cli.run(all.toArray(String[]::new));
    }

    @FunctionalInterface
    private interface Damage {
        void to(BadInputTest input) throws IOException;
    }

    private static Arguments broken(String what, String message, Damage damage) {
        return Arguments.of(what, message, damage);
    }

    static Stream<Arguments> files() {
        return Stream.of(
                broken("no model folder", "no/such/folder: expected a model folder, found none; models are not downloaded",
                        in -> in.model = Path.of("no/such/folder")),
                broken("a model that is a file", "data.jsonl: expected a model folder, found a file",
                        in -> in.model = in.data),
                broken("a model that is an adapter", "adapter: expected a model folder, found an adapter's", in -> {
                    in.model = in.data.resolveSibling("adapter");
                    Files.createDirectories(in.model);
                    Files.writeString(in.model.resolve("adapter_config.json"), "{}");
                }),
                broken("no config.json", "model/config.json: expected a file, found none",
                        in -> Files.delete(in.model.resolve("config.json"))),
                broken("broken config.json", "model/config.json: expected JSON",
                        in -> Files.writeString(in.model.resolve("config.json"), "{\"model_type\":")),
                broken("no weights", "model: expected one of [model.safetensors, pytorch_model.bin]",
                        in -> Files.delete(in.model.resolve("model.safetensors"))),
                broken("no tokenizer", "model: expected tokenizer.json",
                        in -> Files.delete(in.model.resolve("tokenizer.json"))),
                broken("broken tokenizer", "model/tokenizer.json: expected a tokenizer: ",
                        in -> Files.writeString(in.model.resolve("tokenizer.json"), "{\"version\": 1")),
                broken("a tokenizer that is a folder", "model/tokenizer.json: expected a file, found a folder",
                        in -> in.fold("tokenizer.json")),
                broken("weights that are a folder", "model/model.safetensors: expected a file, found a folder",
                        in -> in.fold("model.safetensors")),
                broken("a chat template that is no text",
                        "model/chat_template.jinja: expected text in UTF-8, found other bytes",
                        in -> Files.write(in.model.resolve("chat_template.jinja"), new byte[]{'{', (byte) 0xFF})),
                broken("truncated weights", "model/model.safetensors: ", in -> {
                    try (FileChannel file = FileChannel.open(in.model.resolve("model.safetensors"),
                            StandardOpenOption.WRITE)) {
                        file.truncate(file.size() / 2);
                    }
                }),
                broken("a header longer than the file", "model/model.safetensors: ",
                        in -> Files.write(in.model.resolve("model.safetensors"), new byte[]{0, 0, 0, 0, 1, 0, 0, 0})),
                broken("NaN weights", "expected finite weights, found NaN or infinity at element", in -> {
                    try (FileChannel file = FileChannel.open(in.model.resolve("model.safetensors"),
                            StandardOpenOption.WRITE)) {
                        ByteBuffer nan = ByteBuffer.allocate(2).order(ByteOrder.LITTLE_ENDIAN).putShort(0, (short) 0x7FC0);
                        file.write(nan, file.size() - 2);
                    }
                }),
                broken("a missing tensor", "expected a tensor model.decoder.layers.6.",
                        in -> in.edit("config.json", "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7")),
                broken("a tensor of another shape", ".fc1.weight: expected shape [512, 256]",
                        in -> in.edit("config.json", "\"ffn_dim\": 1024", "\"ffn_dim\": 512")),
                broken("no attention heads", "model/config.json: expected num_attention_heads to be at least 1, found 0",
                        in -> in.edit("config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 0")),
                broken("no data", "none.jsonl: expected a file, found none", in -> in.data = Path.of("none.jsonl")),
                broken("data that is a folder", "model: expected a file, found a folder", in -> in.data = in.model),
                broken("JSON over several lines",
                        "config.json line 1: expected JSON: Unexpected end-of-input: expected close marker for Object\n",
                        in -> in.data = in.model.resolve("config.json")),
                broken("empty data", "data.jsonl: expected one sample or more, found none",
                        in -> Files.writeString(in.data, "\n")),
                broken("broken JSON", "data.jsonl line 3: expected JSON",
                        in -> Files.writeString(in.data, "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"\n")),
                broken("an unknown kind of sample", "data.jsonl line 1: expected text, prompt and completion",
                        in -> Files.writeString(in.data, "{\"question\":\"a\"}\n")),
                broken("tokens beyond the vocabulary", "data.jsonl line 1: expected tokens in [0, ",
                        in -> Files.writeString(in.data, "{\"context\":[5],\"completion\":[999999]}\n")),
                broken("nothing supervised", "expected supervised tokens, found none",
                        in -> Files.writeString(in.data, "{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}\n")),
                broken("not text", "data.jsonl line 1: expected text in UTF-8",
                        in -> Files.write(in.data, new byte[]{'{', (byte) 0xFF, (byte) 0xFE})),
                broken("an output that is a file", "out: expected to write it, found: a file where a folder is to be: ",
                        in -> Files.writeString(in.output, "mine")),
                broken("an output below a file", "data.jsonl", in -> in.output = in.data.resolve("out")));
    }

    /** Puts a folder where a file of the model is. */
    private void fold(String file) throws IOException {
        Files.delete(model.resolve(file));
        Files.createDirectory(model.resolve(file));
    }

    private void edit(String file, String from, String to) throws IOException {
        String text = Files.readString(model.resolve(file));
        assertThat(text).contains(from);
        Files.writeString(model.resolve(file), text.replace(from, to));
    }

    @ParameterizedTest(name = "{0}")
    @MethodSource("files")
    void brokenFilesAreNamed(String what, String message, Damage damage) throws IOException {
        damage.to(this);
        assertExplained(train(), message);
    }

    static Stream<Arguments> options() {
        return Stream.of(
                Arguments.of("expected a sequence length of at most 512", List.of("--seq-len", "1024")),
                Arguments.of("no-adapter/adapter_config.json: expected a PEFT adapter's configuration, found no file",
                        List.of("--init-adapter", "no-adapter")),
                Arguments.of("expected at most 134217728 tokens in a batch, found 4194304 rows of 512",
                        List.of("--batch-size", "4194304")),
                Arguments.of("expected an adapter of at most 2147483647 parameters, which one array holds, found 2457600000 "
                        + "of rank 400000", List.of("--lora-r", "400000")),
                Arguments.of("not enough memory: expected ", List.of("--batch-size", "200000")),
                Arguments.of("no-evaluation.jsonl: expected a file, found none",
                        List.of("--eval-data", "no-evaluation.jsonl")),
                Arguments.of("/dev/null: expected a folder, found a file", List.of("--metrics", "/dev/null/m.jsonl")));
    }

    static Stream<Arguments> usage() {
        return Stream.of(
                Arguments.of(
                        "expected target modules among [q_proj, k_proj, v_proj, out_proj, fc1, fc2], found [gate_proj, q]",
                        List.of("--targets", "q_proj,q,gate_proj")),
                Arguments.of("expected a sequence length of 2 or more, found 1", List.of("--seq-len", "1")),
                Arguments.of("expected a batch size of 1 or more, found 0", List.of("--batch-size", "0")),
                Arguments.of("expected a learning rate of 0 or more, found -1.0", List.of("--lr", "-1")),
                Arguments.of("expected steps between checkpoints of 0 or more, found -1", List.of("--save-every", "-1")),
                Arguments.of("expected a LoRA rank r of 1 or more, found 0", List.of("--lora-r", "0")),
                Arguments.of("expected lora_dropout in [0, 1), found 1.0", List.of("--lora-dropout", "1")));
    }

    /** Nothing is opened for it. */
    @ParameterizedTest
    @MethodSource("usage")
    void valuesOutOfRangeAreWrongUsage(String message, List<String> options) {
        model = Path.of("no/such/folder");
        Outcome outcome = train(options.toArray(String[]::new));
        assertThat(outcome.err()).startsWith("penumbra: " + message).hasLineCount(1);
        assertThat(outcome.code()).isEqualTo(2);
        assertThat(output).doesNotExist();
    }

    static Stream<Arguments> usageOfOthers() {
        return Stream.of(
                Arguments.of("expected a batch size of 1 or more, found 0", "eval",
                        List.of("--data", "d", "--batch-size", "0")),
                Arguments.of("expected a sequence length of 2 or more, found 0", "eval",
                        List.of("--data", "d", "--seq-len", "0")),
                Arguments.of("expected a number of samples of 0 or more, found -1", "inspect",
                        List.of("--data", "d", "--samples", "-1")),
                Arguments.of("expected 0 to 1024 threads, found 1025", "calibrate",
                        List.of("--data", "d", "--output", "o", "--threads", "1025")),
                Arguments.of("expected 0 to 1024 threads, found -1", "inspect",
                        List.of("--data", "d", "--threads", "-1")),
                Arguments.of("expected 0 to 1024 threads, found -1", "eval",
                        List.of("--data", "d", "--threads", "-1")),
                Arguments.of("expected 0 to 1024 threads, found -1", "generate",
                        List.of("--prompt", "p", "--threads", "-1")),
                Arguments.of("expected a length of 0 or more, found -1", "generate",
                        List.of("--prompt", "p", "--length", "-1")),
                Arguments.of("expected a temperature of 0 or more, found -1.0", "generate",
                        List.of("--prompt", "p", "--temperature", "-1")),
                Arguments.of("expected a top-p above 0, at most 1, found 2.0", "generate",
                        List.of("--prompt", "p", "--top-p", "2")));
    }

    @ParameterizedTest
    @MethodSource("usageOfOthers")
    void valuesOutOfRangeAreWrongUsageOfOtherCommandsToo(String message, String command, List<String> options) {
        List<String> all = new ArrayList<>(List.of(command, "--model", "no/such/folder"));
        all.addAll(options);
        Outcome outcome = Cli.run(all.toArray(String[]::new));
        assertThat(outcome.err()).startsWith("penumbra: " + message).hasLineCount(1);
        assertThat(outcome.code()).isEqualTo(2);
    }

    @ParameterizedTest
    @MethodSource("options")
    void valuesThatCannotBeAreSaidWithWhatWasExpected(String message, List<String> options) {
        assertExplained(train(options.toArray(String[]::new)), message);
    }

    private static void assertExplained(Outcome outcome, String message) {
        assertThat(outcome.err()).startsWith("penumbra: ").contains(message).hasLineCount(1);
        assertThat(outcome.code()).isEqualTo(1);
    }

    @Test
    void aFolderThatAnotherRunHoldsIsRefused() throws IOException {
        try (RunLock other = RunLock.acquire(output)) {
            assertThat(other).isNotNull();
            assertExplained(train(), output + ": expected a folder that no other run writes to");
        }
    }

    @Test
    void aFailedRunLeavesTheAdapterThatWasThere() throws IOException {
        assertThat(train("--save-every", "1").code()).isZero();
        Files.move(output.resolve("checkpoint-2"), folder.resolve("elsewhere"));
        byte[] before = Files.readAllBytes(output.resolve("adapter_model.safetensors"));
        assertExplained(train("--resume", "--metrics", "/dev/full"), "/dev/full: No space left on device");
        assertThat(Files.readAllBytes(output.resolve("adapter_model.safetensors"))).isEqualTo(before);
    }

    @Test
    void aReportThatCannotBeWrittenIsSaidBeforeTheFirstStep() throws IOException {
        Path report = Files.createFile(folder.resolve("file")).resolve("report.html");
        assertExplained(train("--report", report.toString()), report
                + ": expected to write it, found: a file where a folder is to be: " + report.getParent() + "\n");
        assertThat(output.resolve("adapter_model.safetensors")).doesNotExist();
    }

    @Test
    void anAdapterThatIsThereIsNotOverwrittenByAnotherRun() throws IOException {
        assertThat(train().code()).isZero();
        byte[] before = Files.readAllBytes(output.resolve("adapter_model.safetensors"));
        for (String option : new String[]{"--no-shuffle", "--resume", "--init-adapter=" + output}) {
            assertExplained(train(option), output + ": expected no adapter of another run, found adapter_config.json and");
            assertThat(Files.readAllBytes(output.resolve("adapter_model.safetensors"))).as(option).isEqualTo(before);
        }
    }

    @Test
    void aResumedRunWithOtherSettingsIsRefused() {
        assertThat(train("--save-every", "1").code()).isZero();
        assertExplained(train("--resume", "--lr", "0.5"), "checkpoint-2: expected");
    }

    @Test
    void aGpuThatIsAskedForWhereThereIsNoneIsTheFirstThingSaid() {
        assumeThatThrownBy(() -> SymbolLookup.libraryLookup("libcuda.so.1", Arena.ofAuto()))
                .isInstanceOf(IllegalArgumentException.class);
        assertExplained(train("--device", "cuda"), "penumbra: expected an NVIDIA GPU, found no driver of one");
    }

    @Test
    void theTraceIsPrintedWhenItIsAskedFor() {
        Outcome outcome = train("--verbose", "--init-adapter", "none");
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err()).contains("\tat dev.penumbra.").contains("penumbra: none/adapter_config.json: expected");
    }
}
