package dev.penumbra.jmh;

import dev.penumbra.Penumbra;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.JsonlOptions;
import dev.penumbra.data.JsonlOptions.LossOn;
import dev.penumbra.data.JsonlReader;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.predict.SparsityConfig;
import dev.penumbra.train.Schedule;
import dev.penumbra.train.TrainConfig;
import dev.penumbra.train.Trainer;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Set;

/** The training that is measured here and beside PEFT: LoRA of rank 4 and alpha 32 on q_proj and v_proj. */
final class TrainingRun {

    private TrainingRun() {
    }

    /**
     * A trainer that writes nothing.
     *
     * @param data JSON Lines of tokens
     * @param shuffle false: batches in the file's order
     * @param offloadedLayers as {@link TrainConfig} takes them
     */
    static Trainer trainer(Penumbra penumbra, Path data, LossOn loss, int batch, int seqLen, int steps, boolean shuffle,
            int offloadedLayers, SparsityConfig sparsity, AttentionConfig attention) throws IOException {
        Dataset samples = JsonlReader.read(data, IdsOnly.INSTANCE,
                new JsonlOptions(seqLen, false, loss, penumbra.model().vocabSize()));
        TrainConfig config = TrainConfig.builder().steps(steps).batchSize(batch).seqLen(seqLen).shuffle(shuffle).lr(1e-4)
                .schedule(Schedule.CONSTANT).clip(0).offloadedLayers(offloadedLayers).sparsity(sparsity).attention(attention)
                .build();
        LoraConfig lora = new LoraConfig(BenchmarkSizes.RANK, 32, 0, Set.of("q_proj", "v_proj"), false);
        return new Trainer(penumbra.model(), penumbra.newAdapter(lora, 42), config, samples, null)
                .exposure(sparsity.policy().needsCalibration() ? DeclaredSparsity.exposure(penumbra) : null)
                .attentionExposure(attention.policy().needsCalibration()
                        ? DeclaredSparsity.attentionExposure(penumbra, attention, seqLen)
                        : null);
    }
}
