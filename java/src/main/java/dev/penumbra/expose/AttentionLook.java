package dev.penumbra.expose;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.data.Batch;
import dev.penumbra.data.Sample;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.model.PassOptions;
import dev.penumbra.model.PassShape;
import dev.penumbra.predict.AttentionPredictor;
import dev.penumbra.sparse.BlockMask;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * What one layer's heads attend to in one sample: what is chosen before, and what is true.
 *
 * @param isPredicted whether the sample's own predictor chose; else the means over sample text did
 * @param chosen blocks by expected mass
 * @param truth as many blocks by true mass
 * @param layouts of the pattern pool
 * @param mass [heads, blocks, blocks]: true parts of each query block's mass
 * @param chosenMass part of the mass that {@code chosen} holds
 * @param trueMass part of the mass that {@code truth} holds
 */
@SuppressWarnings("ArrayRecordComponent")
public record AttentionLook(int layer, boolean isPredicted, BlockMask chosen, BlockMask truth, BlockMask layouts,
        float[] mass,
        double chosenMass, double trueMass) {

    /**
     * Runs a sample and looks at every layer.
     *
     * @param model loaded
     * @param adapter that the sample runs under; null: the base model alone
     * @param coverage of the masses' sum, above 0, at most 1
     * @param budget largest part of the blocks, above 0, at most 1
     * @throws IllegalArgumentException when the sample has fewer than two blocks, or more than the calibration knows
     */
    public static List<AttentionLook> at(LanguageModel model, @Nullable LoraAdapter adapter,
            AttentionCalibration calibration,
            Sample sample, double coverage, double budget) {
        int size = calibration.blockSize();
        int blocks = Math.ceilDiv(sample.length(), size);
        if (sample.length() < AttentionUse.FEWEST_BLOCKS * size || blocks > calibration.width()) {
            throw new IllegalArgumentException("expected a sample of " + AttentionUse.FEWEST_BLOCKS * size + " to "
                    + calibration.width() * size + " tokens, as the calibration knows them, found one of "
                    + sample.length());
        }
        int poolRows = calibration.figures().poolRows();
        AttentionUse use = new AttentionUse(calibration.layers());
        try (Arena arena = Arena.ofShared();
                AttentionCollector collector = new AttentionCollector(model.backend(), calibration.layers(), size, poolRows,
                        sample.length())) {
            Batch batch = Batch.of(sample);
            model.openPass(arena, adapter, new PassShape(sample.length(), sample.length(), false),
                    PassOptions.observed(null, collector)).forward(batch, null);
            collector.add(0, batch, use);
        }
        List<AttentionLook> looks = new ArrayList<>();
        for (int layer = 0; layer < calibration.layers(); layer++) {
            looks.add(of(model.backend(), calibration, use, layer, sample.length(), coverage, budget));
        }
        return looks;
    }

    private static AttentionLook of(Backend backend, AttentionCalibration calibration, AttentionUse use, int layer,
            int tokens,
            double coverage, double budget) {
        int heads = calibration.heads();
        int width = calibration.width();
        int n = use.shapes().getFirst().blocks();
        AttentionPredictor predictor = use.isPooled(layer) ? calibration.predictor(layer).orElse(null) : null;
        float[] expected = predictor == null
                ? null
                : predicted(backend, predictor, use.pooled(layer), tokens, n);
        float[] table = calibration.table(layer);
        boolean[][] chosen = new boolean[heads][];
        boolean[][] truth = new boolean[heads][];
        float[] parts = new float[heads * n * n];
        double total = 0;
        double inChosen = 0;
        double inTruth = 0;
        for (int h = 0; h < heads; h++) {
            float[] mass = use.mass(layer, 0, h);
            float[] scores = expected == null
                    ? MassTables.prefix(Arrays.copyOfRange(table, h * width * width, (h + 1) * width * width),
                            width,
                            n)
                    : Arrays.copyOfRange(expected, h * n * n, (h + 1) * n * n);
            chosen[h] = AttentionChoice.choose(scores, n, coverage, budget);
            // As many, so that they can be compared.
            double same = (AttentionChoice.count(chosen[h]) + 0.5) / AttentionChoice.causal(n);
            truth[h] = AttentionChoice.choose(mass, n, 1, Math.min(1, same));
            inChosen += AttentionChoice.covered(mass, chosen[h]);
            inTruth += AttentionChoice.covered(mass, truth[h]);
            for (int i = 0; i < n; i++) {
                float row = 0;
                for (int j = 0; j <= i; j++) {
                    row += mass[i * n + j];
                }
                total += row;
                for (int j = 0; j <= i && row > 0; j++) {
                    parts[(h * n + i) * n + j] = mass[i * n + j] / row;
                }
            }
        }
        return new AttentionLook(layer, expected != null,
                BlockMask.of(heads, n, (h, i, j) -> chosen[h][i * n + j]),
                BlockMask.of(heads, n, (h, i, j) -> truth[h][i * n + j]),
                BlockMask.of(heads, n, layouts(calibration, layer)), parts, inChosen / total, inTruth / total);
    }

    private static BlockMask.Rule layouts(AttentionCalibration calibration, int layer) {
        var layouts = IntStream.range(0, calibration.heads()).mapToObj(h -> calibration.layout(layer, h))
                .toList();
        return (h, i, j) -> layouts.get(h).keeps(i, j);
    }

    /** [heads, blocks, blocks] by the operation that training runs. */
    private static float[] predicted(Backend backend, AttentionPredictor p, float[] pooled, int tokens, int blocks) {
        try (Arena arena = Arena.ofShared()) {
            Tensor rows = uploaded(backend, arena, Tensor.of(arena, pooled).reshape(pooled.length / p.hidden(), p.hidden()));
            long projections = 2L * p.heads() * p.rank();
            Tensor wide = uploaded(backend, arena, Tensor.of(arena, p.a()).reshape(projections, p.hidden()));
            Tensor a = backend.allocate(arena, DType.BF16, wide.shape());
            backend.run(new Convert(wide, a));
            Tensor bias = uploaded(backend, arena, Tensor.of(arena, p.bias()).reshape(2, p.heads(), p.rank()));
            Tensor distance = uploaded(backend, arena, Tensor.of(arena, p.distance()).reshape(p.heads(), p.width()));
            Tensor borders = uploaded(backend, arena, Tensor.of(arena, 0, tokens));
            long slots = AttentionBlocks.slots(tokens, 1, p.blockSize());
            Tensor mass = backend.allocate(arena, DType.F32, Shape.of(p.heads(), slots, p.width()));
            Tensor shaped = a.reshape(2, p.heads(), p.rank(), p.hidden());
            PredictAttention bare = new PredictAttention(rows, p.poolRows(), shaped, bias, distance, borders, tokens, tokens,
                    p.blockSize(), mass, null);
            long bytes = backend.workspaceBytes(bare);
            Tensor workspace = bytes == 0 ? null : backend.allocate(arena, DType.U8, Shape.of(bytes));
            backend.run(
                    new PredictAttention(rows, p.poolRows(), shaped, bias, distance, borders, tokens, tokens, p.blockSize(),
                            mass, workspace));
            float[] all = backend.toFloats(mass);
            float[] result = new float[p.heads() * blocks * blocks];
            for (int h = 0; h < p.heads(); h++) {
                for (int i = 0; i < blocks; i++) {
                    System.arraycopy(all, Math.toIntExact((h * slots + i) * p.width()), result, (h * blocks + i) * blocks,
                            blocks);
                }
            }
            return result;
        }
    }

    private static Tensor uploaded(Backend backend, Arena arena, Tensor host) {
        Tensor device = backend.allocate(arena, host.dtype(), host.shape());
        backend.upload(host, device);
        return device;
    }

    @Override
    public String toString() {
        return String.format(Locale.ROOT, "layer %2d: %s keeps %.1f%% of the blocks, %.1f%% of the mass; best %.1f%%", layer,
                isPredicted ? "predictor" : "mean", 100 * chosen.keptPart(), 100 * chosenMass, 100 * trueMass);
    }
}
