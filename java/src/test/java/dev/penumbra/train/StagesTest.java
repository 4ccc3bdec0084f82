package dev.penumbra.train;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.model.AttentionObserver;
import dev.penumbra.model.ForgetfulBuffers;
import dev.penumbra.model.MlpObserver;
import dev.penumbra.model.ModelPass;
import dev.penumbra.model.ModelPass.DropoutSeed;
import dev.penumbra.model.ModelPass.Mode;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.RandomOpt;
import dev.penumbra.predict.AttentionPolicy;
import dev.penumbra.predict.SelectionPolicy;
import dev.penumbra.predict.SparsityConfig.Pass;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import dev.penumbra.train.SparseFixture.Result;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What a pass keeps from one of its stages to the next is what it says: it computes the same where all else is lost. */
class StagesTest {

    @TempDir
    Path folder;

    /** Norms before or after, a final one or none, projections or none, targets that reach all of the lowest layer or little. */
    @ParameterizedTest
    @CsvSource({"F32, true, false, 24, q_proj k_proj v_proj out_proj fc1 fc2", "F32, true, true, 24, q_proj v_proj",
            "F32, true, false, 20, fc2", "F32, false, true, 24, q_proj v_proj", "F32, false, true, 20, fc1 fc2",
            "BF16, true, false, 24, q_proj v_proj", "BF16, true, true, 20, q_proj k_proj v_proj out_proj fc1 fc2",
            "BF16, false, true, 24, q_proj k_proj v_proj out_proj fc1 fc2", "BF16, false, true, 20, q_proj v_proj"})
    void denseStepsAndLogitsNeedNoMore(DType dtype, boolean preNorm, boolean removeFinalNorm, int embedding, String targets)
            throws IOException {
        RandomOpt sizes = new RandomOpt(24, 2, SparseFixture.BLOCK * SparseFixture.BLOCKS, 3, 50, SparseFixture.POSITIONS,
                embedding, preNorm, removeFinalNorm);
        try (SparseFixture f = new SparseFixture(folder, Backends.open(Device.CPU, 2, true), sizes, dtype,
                Set.of(targets.split(" ")), neuron -> false, List.of(), 0.1)) {
            requireSame(f, PassOptions.DENSE, false);
            requireSame(f.superviseEvery(3), PassOptions.DENSE.forLoss(), false);
        }
    }

    /** Lists in both passes or in the backward one, by what is there before a layer or by what it computes. */
    @ParameterizedTest
    @CsvSource({"F32, true, BOTH, PREDICTED", "F32, true, BOTH, ORACLE", "F32, true, BACKWARD, PREDICTED",
            "F32, true, BACKWARD, ORACLE", "F32, false, BOTH, PREDICTED", "F32, false, BOTH, RANDOM",
            "F32, false, BACKWARD, PREDICTED", "F32, false, BACKWARD, ORACLE", "BF16, true, BOTH, PREDICTED",
            "BF16, false, BOTH, PREDICTED", "BF16, false, BACKWARD, PREDICTED"})
    void stepsByListsNeedNoMore(DType dtype, boolean preNorm, Pass pass, SelectionPolicy policy) throws IOException {
        for (Set<String> targets : List.of(Set.copyOf(LoraConfig.OPT_TARGETS), Set.of("q_proj", "v_proj"), Set.of("fc2"))) {
            try (SparseFixture f = new SparseFixture(folder, Backends.open(Device.CPU, 2, true),
                    SparseFixture.sizes(preNorm, 3), dtype, targets, neuron -> false, List.of(), 0)) {
                PassOptions options = PassOptions.sparse(f.sparsity(SparseFixture.config(policy, pass, 1, 0.2, 0)));
                requireSame(f, options, true);
                requireSame(f.superviseEvery(3), options.forLoss(), true);
            }
        }
    }

    @ParameterizedTest
    @CsvSource({"true, BOTH, PREDICTED", "true, BOTH, ORACLE", "true, BACKWARD, PREDICTED", "true, BACKWARD, ORACLE",
            "true, BACKWARD, RANDOM", "false, BOTH, ORACLE", "false, BACKWARD, BIGBIRD"})
    void attentionByListsNeedsNoMore(boolean preNorm, Pass pass, AttentionPolicy policy) throws IOException {
        try (SparseFixture f = AttentionFixture.open(folder, Backends.open(Device.CPU, 2, true), preNorm)) {
            requireSame(f, PassOptions.sparse(
                    f.sparsity(SparseFixture.config(SelectionPolicy.PREDICTED, pass, 1, 0.4, 0)),
                    AttentionFixture.sparsity(f, AttentionFixture.config(policy, pass, 0.9, 0.7))), true);
        }
    }

    @ParameterizedTest
    @CsvSource({"F32, true", "F32, false", "BF16, true", "BF16, false"})
    void observersAreShownTheSame(DType dtype, boolean preNorm) throws IOException {
        try (SparseFixture f = new SparseFixture(folder, Backends.open(Device.CPU, 2, true),
                SparseFixture.sizes(preNorm, 3), dtype, SparseFixture.ALL, neuron -> false, List.of(), 0)) {
            List<List<Float>> shown = new ArrayList<>();
            for (boolean forgetful : new boolean[]{false, true}) {
                List<Float> seen = new ArrayList<>();
                PassOptions options = PassOptions.observed(neurons(f, seen), heads(f, seen));
                open(f, options, forgetful).forward(f.batch(), null);
                shown.add(seen);
            }
            assertThat(shown.get(0)).isNotEmpty().allMatch(Float::isFinite);
            assertThat(shown.get(1)).isEqualTo(shown.get(0));
        }
    }

    private static void add(SparseFixture f, List<Float> seen, @Nullable Tensor tensor) {
        if (tensor != null) {
            for (float value : f.host(tensor)) {
                seen.add(value);
            }
        }
    }

    private static MlpObserver neurons(SparseFixture f, List<Float> seen) {
        return new MlpObserver() {
            @Override
            public int poolRows() {
                return 16;
            }

            @Override
            public void afterFc1(int layer, Tensor input, @Nullable Tensor pooled, Tensor activation, Tensor mask,
                    Tensor validRows) {
                add(f, seen, input);
                add(f, seen, pooled);
                add(f, seen, activation);
            }
        };
    }

    private static AttentionObserver heads(SparseFixture f, List<Float> seen) {
        return new AttentionObserver() {
            @Override
            public int poolRows() {
                return 16;
            }

            @Override
            public void afterAttention(int layer, Seen attention) {
                add(f, seen, attention.pooled());
            }
        };
    }

    private static ModelPass open(SparseFixture f, PassOptions options, boolean forgetful) {
        return forgetful
                ? ForgetfulBuffers.open(f.model, f.arena, f.adapter, f.shape(), options)
                : f.model.openPass(f.arena, f.adapter, f.shape(), options);
    }

    /** Steps, measurements, losses and logits are those of a pass that forgets, to the bit. */
    static void requireSame(SparseFixture f, PassOptions options, boolean lists) {
        List<Object> found = new ArrayList<>();
        for (boolean forgetful : new boolean[]{false, true}) {
            ModelPass pass = open(f, options, forgetful);
            List<Object> results = new ArrayList<>();
            DropoutSeed seed = new DropoutSeed(3, 5);
            results.add(step(f, pass, Mode.DENSE, seed));
            if (lists) {
                results.add(step(f, pass, Mode.SPARSE, seed));
                pass.sense();
                results.add(step(f, pass, Mode.SPARSE, seed));
                results.add(pass.blockChoice().coverage());
                results.add(f.loss(pass, Mode.SPARSE, seed));
            }
            results.add(step(f, pass, Mode.DENSE, null));
            results.add(f.loss(pass, Mode.DENSE, null));
            if (!options.lossOnly()) {
                Tensor logits = f.backend.allocate(f.arena, DType.F32,
                        Shape.of(f.batch().ids().length, f.model.vocabSize()));
                pass.logits(logits);
                results.add(f.host(logits));
            }
            found.add(results);
        }
        assertThat(found.get(1)).usingRecursiveComparison().isEqualTo(found.get(0));
    }

    private static Result step(SparseFixture f, ModelPass pass, Mode mode, @Nullable DropoutSeed seed) {
        Result result = f.run(pass, mode, seed);
        assertThat(result.loss()).isFinite();
        for (float value : result.gradient()) {
            assertThat(value).isFinite();
        }
        return result;
    }
}
