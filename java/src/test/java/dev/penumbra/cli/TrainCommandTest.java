package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.cli.Cli.Outcome;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.json.JsonMapper;

/** The command as a person gives it, on the bundled checkpoint. */
class TrainCommandTest {

    private static final JsonMapper JSON = new JsonMapper();

    @TempDir
    static Path shared;

    private static String model;
    private static String data;

    @TempDir
    Path folder;

    @BeforeAll
    static void prepare() {
        model = Cli.model(shared).toString();
        data = Cli.data(shared.resolve("data.jsonl"), 64).toString();
    }

    private Outcome train(String output, String... options) {
        List<String> all = new ArrayList<>(List.of("train", "--model", model, "--data", data, "--output",
                folder.resolve(output).toString(), "--seq-len", "64"));
        if (!List.of(options).contains("--batch-size")) {
            all.addAll(List.of("--batch-size", "2"));
        }
        all.addAll(Arrays.asList(options));
        return Cli.run(all.toArray(String[]::new));
    }

    private Outcome trained(String output, String... options) {
        Outcome outcome = train(output, options);
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.code()).isZero();
        return outcome;
    }

    private List<JsonNode> metrics(String file) throws IOException {
        return Files.readAllLines(folder.resolve(file)).stream().map(JSON::readTree).toList();
    }

    private List<Double> losses(String file) throws IOException {
        return metrics(file).stream().map(line -> line.path("loss").asDouble()).toList();
    }

    private String path(String name) {
        return folder.resolve(name).toString();
    }

    @Test
    void everyOptionTogetherTrainsAndTellsWhatItDid() throws IOException {
        Outcome outcome = trained("out", "--steps", "4", "--lr", "1e-3", "--schedule", "cosine", "--warmup-steps", "2",
                "--weight-decay", "0.1", "--clip", "0.5", "--grad-accum", "2", "--lora-r", "4", "--lora-alpha", "4",
                "--lora-dropout", "0.1", "--targets", "q_proj,fc1,fc2", "--dtype", "f32", "--device", "cpu", "--seed", "7",
                "--no-shuffle", "--no-pack", "--loss", "all", "--truncate", "--eval-data", data, "--eval-every", "2",
                "--save-every", "3", "--metrics", path("m.jsonl"), "--threads", "1");
        assertThat(outcome.out()).contains("4/4", "step 2: evaluation loss", "step 4: evaluation loss", "step 3: saved",
                "Adapter: " + folder.resolve("out"));
        assertThat(metrics("m.jsonl")).hasSize(4).allSatisfy(line -> assertThat(line.propertyNames())
                .containsExactly("step", "loss", "lr", "grad_norm", "real_tokens", "tokens_per_s", "step_ms"));
        assertThat(metrics("m.jsonl").stream().map(line -> line.path("lr").asDouble())).containsExactly(0.0, 5e-4, 1e-3,
                5e-4);
        JsonNode adapter = JSON.readTree(Files.readString(folder.resolve("out/adapter_config.json")));
        assertThat(adapter.path("r").asInt()).isEqualTo(4);
        assertThat(adapter.path("target_modules").toString()).isEqualTo("[\"q_proj\",\"fc1\",\"fc2\"]");
        assertThat(folder.resolve("out/checkpoint-3/state.json")).exists();
    }

    @Test
    void aResumedRunGivesTheLossesOfAnUninterruptedOne() throws IOException {
        trained("whole", "--steps", "6", "--metrics", path("whole.jsonl"));
        trained("parts", "--steps", "6", "--save-every", "4", "--metrics", path("parts.jsonl"));
        Files.delete(folder.resolve("parts/adapter_model.safetensors"));
        Outcome resumed = trained("parts", "--steps", "6", "--save-every", "4", "--resume", "--metrics",
                path("parts.jsonl"));
        assertThat(resumed.out()).contains("5/6").doesNotContain("4/6");
        assertThat(losses("parts.jsonl")).isEqualTo(losses("whole.jsonl"));
        assertThat(Files.readAllBytes(folder.resolve("parts/adapter_model.safetensors")))
                .isEqualTo(Files.readAllBytes(folder.resolve("whole/adapter_model.safetensors")));
    }

    @Test
    void onlyARunThatDidAllItsStepsClaimsItsAdapter() {
        Path output = Path.of("out");
        assertThat(TrainCommand.outcome(6, 6, output)).isEqualTo("Adapter: out");
        assertThat(TrainCommand.outcome(4, 6, output)).isEqualTo("Stopped after step 4 of 6: --resume goes on");
        assertThat(TrainCommand.outcome(0, 6, output))
                .isEqualTo("Stopped before the first of 6 steps: nothing is trained or saved");
        assertThat(TrainCommand.outcome(0, 1, output)).startsWith("Stopped before the first of 1 step: ");
    }

    @Test
    void anInitialAdapterGoesOnWhereItWasAndGivesItsOwnRank() throws IOException {
        trained("first", "--steps", "30", "--lr", "3e-3", "--lora-r", "4", "--metrics", path("first.jsonl"));
        trained("second", "--steps", "2", "--init-adapter", path("first"), "--metrics",
                path("second.jsonl"));
        assertThat(losses("second.jsonl").getFirst()).isLessThan(0.8 * losses("first.jsonl").getFirst());
        assertThat(JSON.readTree(Files.readString(folder.resolve("second/adapter_config.json"))).path("r").asInt())
                .isEqualTo(4);
    }

    @Test
    void lossOnAllTokensCountsMoreThanTheCompletions() throws IOException {
        trained("completion", "--steps", "1", "--no-shuffle", "--metrics", path("completion.jsonl"));
        trained("all", "--steps", "1", "--no-shuffle", "--loss", "all", "--metrics", path("all.jsonl"));
        assertThat(losses("all.jsonl")).isNotEqualTo(losses("completion.jsonl"));
        assertThat(metrics("all.jsonl").getFirst().path("real_tokens")).isEqualTo(
                metrics("completion.jsonl").getFirst().path("real_tokens"));
    }

    @Test
    void packedRowsHoldMoreSamplesThanUnpackedOnes() throws IOException {
        trained("packed", "--steps", "1", "--metrics", path("packed.jsonl"));
        trained("unpacked", "--steps", "1", "--no-pack", "--metrics", path("unpacked.jsonl"));
        assertThat(metrics("packed.jsonl").getFirst().path("real_tokens").asInt())
                .isGreaterThan(metrics("unpacked.jsonl").getFirst().path("real_tokens").asInt());
    }

    @Test
    void longSamplesAreRefusedUnlessTheyAreCut() {
        List<String> arguments = List.of("train", "--model", model, "--data", data, "--output", path("out"), "--seq-len",
                "16",
                "--steps", "1");
        Outcome refused = Cli.run(arguments.toArray(String[]::new));
        assertThat(refused.code()).isEqualTo(1);
        assertThat(refused.err()).contains(data + " line ").contains(": expected at most 16 tokens, found ")
                .contains("--truncate")
                .hasLineCount(1);
        List<String> cut = new ArrayList<>(arguments);
        cut.add("--truncate");
        assertThat(Cli.run(cut.toArray(String[]::new)).code()).isZero();
    }

    @Test
    void optionsComeFromAFileAndEvalAndGenerateReadWhatWasTrained() throws IOException {
        Path yaml = Files.writeString(folder.resolve("run.yaml"), """
                model: %s
                data: %s
                output: %s
                steps: 30
                lr: 3e-3
                seq-len: 64
                threads: 1
                targets: [q_proj, v_proj, fc1]
                """.formatted(model, data, path("tuned")));
        assertThat(Cli.run("train", "--config", yaml.toString()).code()).isZero();
        assertThat(
                JSON.readTree(Files.readString(folder.resolve("tuned/adapter_config.json"))).path("target_modules").size())
                .isEqualTo(3);
        Outcome before = Cli.run("eval", "--model", model, "--data", data, "--seq-len", "64", "--threads", "1");
        Outcome after = Cli.run("eval", "--model", model, "--data", data, "--seq-len", "64", "--threads", "1",
                "--adapter", path("tuned"));
        Pattern loss = Pattern.compile("loss ([0-9.]+)  perplexity [0-9.]+");
        Matcher first = loss.matcher(before.out().strip());
        Matcher second = loss.matcher(after.out().strip());
        assertThat(first.matches()).isTrue();
        assertThat(second.matches()).isTrue();
        assertThat(Double.parseDouble(second.group(1))).isLessThan(0.5 * Double.parseDouble(first.group(1)));
        Outcome generated = Cli.run("generate", "--model", model, "--adapter", path("tuned"), "--prompt", "table 3\n",
                "--length", "12", "--threads", "1");
        assertThat(generated.code()).isZero();
        assertThat(generated.out()).startsWith("table 3\nIt stands in row");
        Outcome exported = Cli.run("export", "--model", model, "--adapter", path("tuned"), "--output", path("merged"));
        assertThat(exported.code()).isZero();
        assertThat(folder.resolve("merged/model.safetensors")).exists();
    }

    @Test
    void sparseRunsTellWhatTheyKeptAndReachADenseRunsLossNearly() throws IOException {
        String[] options = {"--steps", "12", "--lr", "2e-3", "--targets", "q_proj,v_proj,fc1,fc2", "--no-shuffle"};
        trained("dense", with(options, "--metrics", path("dense.jsonl")));
        double dense = losses("dense.jsonl").getLast();
        for (String policy : List.of("exact", "oracle", "static", "random", "seed")) {
            Outcome outcome = trained(policy, with(options, "--mlp-sparsity", policy, "--budget", "0.5", "--mlp-block", "32",
                    "--dense-warmup", "0.25", "--sense-every", "4", "--metrics", path(policy + ".jsonl"), "--report",
                    path(policy + ".html")));
            assertThat(outcome.out()).contains("MLP ");
            List<JsonNode> lines = metrics(policy + ".jsonl");
            assertThat(lines.get(2).has("mlp_kept")).isFalse();
            assertThat(lines.get(3).path("mlp_kept").asDouble()).isBetween(0.01, 0.5);
            assertThat(lines.get(3).path("mlp_kept_by_layer")).hasSize(6);
            assertThat(lines.get(3).path("mlp_true_coverage").asDouble()).isBetween(0.01, 1.0);
            assertThat(lines.get(4).has("mlp_true_coverage")).isFalse();
            assertThat(Files.readString(folder.resolve(policy + ".html"))).contains("fill-opacity");
            System.out.printf("%s: loss %.4f, dense %.4f, kept %.3f, true coverage %.3f%n", policy,
                    losses(policy + ".jsonl").getLast(), dense, lines.get(3).path("mlp_kept").asDouble(),
                    lines.get(3).path("mlp_true_coverage").asDouble());
            assertThat(losses(policy + ".jsonl").getLast()).isLessThan(1.5 * dense);
        }
    }

    @Test
    void runsWithSparseAttentionTellWhatItKeptAndReachADenseRunsLossNearly() throws IOException {
        String text = longText(12);
        String[] options = {"--data", text, "--seq-len", "384", "--truncate", "--steps", "6", "--lr", "2e-3",
                "--batch-size", "1", "--threads", "2", "--no-shuffle"};
        trainedOn("dense", with(options, "--metrics", path("dense.jsonl")));
        double dense = losses("dense.jsonl").getLast();
        for (String policy : List.of("all", "exact", "oracle", "random", "bigbird", "longformer")) {
            boolean whole = policy.equals("all") || policy.equals("exact");
            Outcome outcome = trainedOn(policy, with(options, "--attention-sparsity", policy, "--attention-budget",
                    whole ? "1" : "0.8", "--attention-block", "64", "--dense-warmup", "0.34", "--sense-every", "2",
                    "--metrics",
                    path(policy + ".jsonl"), "--report", path(policy + ".html")));
            List<JsonNode> told = metrics(policy + ".jsonl");
            assertThat(told).hasSize(6).allSatisfy(line -> assertThat(line.has("mlp_kept")).isFalse());
            assertThat(told.get(1).has("attention_kept")).isFalse();
            String page = Files.readString(folder.resolve(policy + ".html"));
            assertThat(page)
                    .contains(policy + " pass=backward coverage=1.0 budget=" + (whole ? "1.0" : "0.8") + " block=64");
            if (!policy.equals("exact")) {
                assertThat(outcome.out()).contains("attention ");
                assertThat(page).contains("Kept part of the attention blocks");
                assertThat(told.get(2).path("attention_kept").asDouble()).isBetween(0.5, whole ? 1 : 0.82);
                assertThat(told.get(2).path("attention_kept_by_layer")).hasSize(6);
                assertThat(told.get(2).path("attention_true_coverage").asDouble()).isBetween(0.5, 1.0001);
                assertThat(told.get(3).has("attention_true_coverage")).isFalse();
            }
            System.out.printf("%s: loss %.4f, dense %.4f, kept %.3f, true coverage %.3f%n", policy,
                    losses(policy + ".jsonl").getLast(), dense, told.get(2).path("attention_kept").asDouble(),
                    told.get(2).path("attention_true_coverage").asDouble());
            assertThat(losses(policy + ".jsonl").getLast()).isLessThan(1.2 * dense);
        }
        // Both at once, by one word; without a calibration of attention, static keeps it dense and says so.
        Outcome both = trainedOn("both",
                with(options, "--sparsity", "oracle", "--sparsity-pass", "both", "--mlp-block", "32",
                        "--metrics", path("both.jsonl")));
        assertThat(both.out()).contains("MLP ", "attention ");
        assertThat(metrics("both.jsonl").getFirst().path("attention_kept").asDouble()).isBetween(0.3, 1.0);
        Outcome dry = trainedOn("dry", with(options, "--sparsity", "static", "--budget", "0.5", "--dry-run"));
        assertThat(dry.out()).contains("Attention stays dense: no calibration is given");
    }

    /** Lines of a few hundred tokens. */
    private String longText(int samples) throws IOException {
        List<String> lines = new ArrayList<>();
        for (int i = 0; i < samples; i++) {
            lines.add("{\"prompt\":\"table " + i + "\\n\",\"completion\":\""
                    + ("It stands in row " + i % 7 + " of the room. ").repeat(40) + "\"}");
        }
        return Files.write(folder.resolve("long.jsonl"), lines).toString();
    }

    @Test
    void aCalibratedRunPredictsItsAttention() throws IOException {
        String text = longText(24);
        Outcome calibrated = Cli.run("calibrate", "--model", model, "--data", text, "--output", path("calibration"),
                "--seq-len", "384", "--truncate", "--batches", "6", "--held-out-batches", "2", "--batch-size", "2",
                "--epochs",
                "1", "--rank", "8", "--attention-block", "64", "--attention-rank", "8", "--threads", "2");
        assertThat(calibrated.err()).isEmpty();
        assertThat(calibrated.code()).isZero();
        String[] options = {"--data", text, "--seq-len", "384", "--truncate", "--steps", "2", "--batch-size", "1",
                "--threads",
                "2", "--calibration", path("calibration"), "--sparsity-pass", "both", "--sense-every", "1"};
        for (String policy : List.of("predicted", "static", "oracle")) {
            trainedOn(policy, with(options, "--attention-sparsity", policy, "--attention-budget", "0.6", "--metrics",
                    path(policy + ".jsonl")));
            JsonNode first = metrics(policy + ".jsonl").getFirst();
            System.out.printf("%s: kept %.3f, true coverage %.3f%n", policy, first.path("attention_kept").asDouble(),
                    first.path("attention_true_coverage").asDouble());
            // The calibration's blocks of 64: six of a sample, of whose 21 pairs eleven are always kept.
            assertThat(first.path("attention_kept").asDouble()).isBetween(0.5, 0.65);
            assertThat(first.path("attention_true_coverage").asDouble()).isBetween(0.6, 1.0001);
        }
        Outcome both = trainedOn("both",
                with(options, "--sparsity", "predicted", "--metrics", path("both.jsonl"), "--report",
                        path("both.html")));
        assertThat(Files.readString(folder.resolve("both.html"))).contains("The tuned model's attention over", ">predicted<",
                "Attention blocks of layer 0");
        assertThat(both.out()).doesNotContain("Attention stays dense");
        assertThat(metrics("both.jsonl").getFirst().path("mlp_kept").asDouble()).isBetween(0.01, 1.0);
        Outcome other = Cli.run(with(new String[]{"train", "--model", model, "--output", path("other")}, with(options,
                "--attention-sparsity", "static", "--attention-block", "128")));
        assertThat(other.code()).isNotZero();
        assertThat(other.err()).contains("in blocks of 128 rows, found one for blocks of 64").hasLineCount(1);
    }

    private Outcome trainedOn(String output, String... options) {
        List<String> all = new ArrayList<>(List.of("train", "--model", model, "--output", path(output)));
        all.addAll(Arrays.asList(options));
        Outcome outcome = Cli.run(all.toArray(String[]::new));
        assertThat(outcome.err()).isEmpty();
        assertThat(outcome.code()).isZero();
        return outcome;
    }

    private static String[] with(String[] options, String... more) {
        List<String> all = new ArrayList<>(Arrays.asList(options));
        all.addAll(Arrays.asList(more));
        return all.toArray(String[]::new);
    }

    @Test
    void aCalibratedRunPredictsItsBlocksInBothPasses() throws IOException {
        String text = Cli.data(folder.resolve("sample.jsonl"), 300).toString();
        Outcome calibrated = Cli.run("calibrate", "--model", model, "--data", text, "--output", path("calibration"),
                "--seq-len", "64", "--batches", "6", "--held-out-batches", "2", "--batch-size", "8", "--epochs", "1",
                "--rank",
                "8", "--threads", "2");
        assertThat(calibrated.err()).isEmpty();
        assertThat(calibrated.code()).isZero();
        for (String policy : List.of("predicted", "low-rank", "static")) {
            trained(policy, "--steps", "3", "--targets", "q_proj,fc1,fc2", "--sparsity", policy, "--sparsity-pass", "both",
                    "--coverage", "0.9", "--calibration", path("calibration"), "--sense-every", "2", "--metrics",
                    path(policy + ".jsonl"));
            JsonNode first = metrics(policy + ".jsonl").getFirst();
            System.out.printf("%s: kept %.3f, covered %.3f, cut %.3f, true coverage %.3f%n", policy,
                    first.path("mlp_kept").asDouble(), first.path("mlp_covered").asDouble(),
                    first.path("mlp_cut").asDouble(),
                    first.path("mlp_true_coverage").asDouble());
            assertThat(first.path("mlp_kept").asDouble()).isBetween(0.01, 0.99);
            assertThat(first.path("mlp_true_coverage").asDouble()).isBetween(0.1, 1.0);
        }
        Outcome evaluated = Cli.run("eval", "--model", model, "--data", data, "--seq-len", "64", "--adapter",
                path("predicted"));
        assertThat(evaluated.code()).isZero();
        Outcome dry = trained("dry", "--steps", "3", "--sparsity", "predicted", "--sparsity-pass", "both", "--calibration",
                path("calibration"), "--dry-run");
        assertThat(dry.out()).contains("3 steps of about");
    }

    @Test
    void aDryRunPlansAndEstimatesAndWritesNothing() throws IOException {
        Outcome outcome = trained("dry", "--steps", "50", "--dry-run");
        assertThat(outcome.out()).contains("frozen weights", "adapters", "activations", "sum");
        assertThat(outcome.out()).contains("50 steps of about ");
        assertThat(trained("dry", "--steps", "1", "--dry-run").out()).contains("\n1 step of about ");
        assertThat(folder.resolve("dry")).doesNotExist();
    }

    @ParameterizedTest
    @ValueSource(strings = {"--dry-run", "--verbose"})
    void aRunThatDoesNotFitIsRefusedWithNumbersBeforeItStarts(String option) {
        Outcome outcome = train("large", "--steps", "1", "--batch-size", "2000000", option);
        assertThat(outcome.code()).isEqualTo(1);
        assertThat(outcome.err())
                .containsPattern("not enough memory: expected [0-9.]+ [MG]iB to be free, found [0-9.]+ [MG]iB")
                .containsPattern("frozen weights [0-9.]+ MiB, ");
        assertThat(outcome.out()).doesNotContain("1/1");
    }

    /** Both are wall times: a machine that is busy with something else during one of them gets two more attempts. */
    @Test
    void theDryRunsEstimateIsWithinAFactorOfTwoOfTheRun() throws IOException {
        String[] options = {"--steps", "20", "--batch-size", "4", "--seq-len", "256"};
        double ratio = 0;
        for (int attempt = 1; attempt <= 3 && !(ratio > 0.5 && ratio < 2); attempt++) {
            Matcher estimate = Pattern.compile("20 steps of about ([0-9.]+) ms")
                    .matcher(run("--dry-run", with(options, "--output", path("dry"))).out());
            assertThat(estimate.find()).isTrue();
            String[] apart = with(options, "--output", path("timed" + attempt));
            run("--metrics=" + path("timed.jsonl"), apart);
            double real = metrics("timed.jsonl").stream().mapToDouble(line -> line.path("step_ms").asDouble()).average()
                    .orElseThrow();
            ratio = Double.parseDouble(estimate.group(1)) / real;
            System.out.printf("dry run's estimate over the run's mean step: %.2f%n", ratio);
        }
        assertThat(ratio).isBetween(0.5, 2.0);
    }

    private Outcome run(String option, String... options) {
        List<String> all = new ArrayList<>(
                List.of("train", "--model", model, "--data", data, option));
        all.addAll(Arrays.asList(options));
        Outcome outcome = Cli.run(all.toArray(String[]::new));
        assertThat(outcome.err()).isEmpty();
        return outcome;
    }
}
