import dev.penumbra.DemoModel;
import dev.penumbra.Penumbra;
import dev.penumbra.data.Dataset;
import dev.penumbra.data.HfTokenizer;
import dev.penumbra.data.RestaurantGenerator;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraConfig;
import dev.penumbra.train.TrainConfig;
import dev.penumbra.train.Trainer;
import java.io.IOException;
import java.nio.file.Path;

/** Tunes the bundled checkpoint for 30 steps and leaves a PEFT adapter. */
public class Tune {
    public static void main(String[] args) throws IOException {
        Path folder = DemoModel.extract(Path.of("target/model"));
        try (Penumbra penumbra = Penumbra.load(folder); HfTokenizer tokenizer = HfTokenizer.load(folder)) {
            Dataset data = RestaurantGenerator.dataset(new RestaurantGenerator(1).pairs(500), tokenizer);
            LoraAdapter adapter = penumbra.newAdapter(LoraConfig.ofRank(8), 42);
            TrainConfig config = TrainConfig.builder().steps(30).seqLen(128).lr(2e-3).output(Path.of("target/adapter")).build();
            new Trainer(penumbra.model(), adapter, config, data, null)
                    .listener(step -> System.out.printf("step %d loss %.4f%n", step.step(), step.loss()))
                    .run();
        }
    }
}
