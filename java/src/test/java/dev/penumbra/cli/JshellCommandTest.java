package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.cli.Cli.Outcome;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

class JshellCommandTest {

    @TempDir
    Path folder;

    private Outcome run(String script, String... arguments) throws IOException {
        Path file = Files.writeString(folder.resolve("script.jsh"), script);
        String[] all = new String[2 + arguments.length];
        all[0] = "jshell";
        all[1] = file.toString();
        System.arraycopy(arguments, 0, all, 2, arguments.length);
        return Cli.run(all);
    }

    @Test
    void theExampleTellsTheZeroShareOfEveryLayer() {
        Path example = Path.of("examples/activation.jsh");
        Outcome outcome = Cli.run("jshell", example.toString(), Cli.model(folder).toString());
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.code()).isZero();
        assertThat(outcome.out().lines().filter(line -> line.startsWith("layer"))).hasSize(6)
                .allSatisfy(line -> assertThat(Double.parseDouble(line.replaceAll(".*: ([0-9.]+)%.*", "$1")))
                        .isStrictlyBetween(50.0, 100.0));
    }

    @Test
    void aScriptSeesImportsArgumentsAndWhatItDeclaresLater() throws IOException {
        Outcome outcome = run("""
                // Methods may be used before what they need is declared.
                int twice(int a) {
                    return times(a, 2);
                }
                int times(int a, int b) { return a * b; }
                System.out.println(DType.F32 + " " + twice(4)) // no semicolon
                System.out.println(String.join("|", args));
                /* the end */
                """, "a \"quoted\" \\ one", "two");
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.code()).isZero();
        assertThat(outcome.out().lines()).containsExactly("F32 8", "a \"quoted\" \\ one|two");
    }

    @Test
    void whatAShellShowsOfAModelItsDataAndItsBlocksIsReadable() throws IOException {
        Path model = Cli.model(folder);
        Path data = Cli.data(folder.resolve("data.jsonl"), 3);
        Outcome outcome = run(
                """
                        var folder = Path.of(args[0]);
                        var penumbra = Penumbra.open(folder, Device.CPU, 1, DType.F32);
                        var tokenizer = HfTokenizer.load(folder);
                        var data = JsonlReader.read(Path.of(args[1]), tokenizer, new JsonlOptions(64, false, LossOn.COMPLETION, 4096));
                        System.out.println(penumbra);
                        System.out.println(penumbra.folder());
                        System.out.println(penumbra.model().backend());
                        System.out.println(tokenizer);
                        System.out.println(data);
                        System.out.println(data.get(0));
                        System.out.println(Batch.of(data.get(0)));
                        System.out.println(penumbra.newAdapter(LoraConfig.ofRank(4), 1));
                        penumbra.model().load();
                        var arena = Arena.ofShared();
                        var half = new SparsityConfig(SelectionPolicy.RANDOM, SparsityConfig.Pass.BOTH, 1, 0.5, 128, 0, 0, 0, false);
                        var sparsity = SparsityPlanner.plan(penumbra.model(), half, null);
                        var pass = penumbra.model().openPass(arena, null, new PassShape(64, 64, false), PassOptions.sparse(sparsity));
                        System.out.println(pass);
                        System.out.println(pass.blockChoice());
                        System.out.println(PatternPool.atomic(8).union(0, 3).mask(4));
                        Class<?>[] known = {Calibration.class, AttentionLook.class, BlockList.class};
                        arena.close();
                        tokenizer.close();
                        penumbra.close();
                        """,
                model.toString(), data.toString());
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.out().lines()).containsExactly(
                model + ": OPT of 6 layers, hidden size 256, 4 heads, 1024 neurons, in F32 on cpu, not loaded",
                model + ": 100 tensors",
                "backend on cpu",
                "tokenizer, start 2, end 2, padding 1",
                data + ": 3 samples",
                "sample of 16 tokens, 11 supervised",
                "batch of 1 sample of 16 tokens, 16 to compute, the longest of 16, 11 supervised",
                "adapter of rank 4 on 12 layers (q_proj, v_proj), 24576 parameters",
                "pass of up to 64 tokens, samples of up to 64, forward, MLPs: blocks to choose in 6 of 6 layers",
                "blocks to choose in 6 of 6 layers",
                "mask of 1 head over 4 blocks, 90.0% kept");
    }

    @Test
    void memoryOfAConfinedArenaIsThereInLaterSnippets() throws IOException {
        Outcome outcome = run("""
                var arena = Arena.ofConfined();
                var tensor = Tensor.of(arena, 1f, 2f);
                System.out.println(Arrays.toString(tensor.toFloats()));
                arena.close();
                """);
        assertThat(outcome.out().strip()).isEqualTo("[1.0, 2.0]");
    }

    static Stream<Arguments> failures() {
        return Stream.of(
                Arguments.of("int a = \"x\";", "line 2: incompatible types: ", "int a = \"x\";"),
                Arguments.of("nope(3);", "line 2: cannot find symbol, symbol:", "nope(3);"),
                Arguments.of("int z = 0;\n\nint y =\n    1 / z;", "line 4: java.lang.ArithmeticException: / by zero",
                        "int y =\n"),
                Arguments.of("void f() { throw new IllegalStateException(\"oh\"); }\nf();",
                        "line 3: java.lang.IllegalStateException: oh", "f();"));
    }

    @ParameterizedTest
    @MethodSource("failures")
    void theFirstSnippetThatFailsIsShownAndEndsTheScript(String snippets, String message, String shown) throws IOException {
        Outcome outcome = run("System.out.println(\"before\");\n" + snippets + "\nSystem.out.println(\"after\");\n");
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err()).startsWith("penumbra: " + folder.resolve("script.jsh") + " " + message)
                .contains("\n    " + shown);
        assertThat(outcome.out().strip()).isEqualTo("before");
    }

    @ParameterizedTest
    @ValueSource(strings = {"int f() { return 3;", "int f() { return g(); }", "class A extends B {}"})
    void aScriptThatLacksSomethingFailsAtItsEnd(String snippet) throws IOException {
        Outcome outcome = run(snippet);
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err()).contains("expected ").contains("\n    " + snippet);
    }

    @Test
    void aMissingScriptIsNamed() {
        Outcome outcome = Cli.run("jshell", "no-such.jsh");
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err().strip()).isEqualTo("penumbra: no-such.jsh: expected a file, found none");
    }
}
