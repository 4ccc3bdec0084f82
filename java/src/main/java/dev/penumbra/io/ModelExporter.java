package dev.penumbra.io;

import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** Merges a LoRA adapter into the weights it was trained on. */
public final class ModelExporter {

    private static final String KEY_PREFIX = "base_model.model.";
    private static final String A = ".lora_A.weight";
    private static final String B = ".lora_B.weight";

    private ModelExporter() {
    }

    /**
     * Writes a full model folder to {@code out}: W[out, in] + scaling * B[out, r] · A[r, in], summed in double and rounded
     * to W's dtype; every other tensor, the configuration and the tokenizer's files as they are.
     *
     * @throws IOException naming the adapter's folder when it does not fit the model, or when merging changes no weight; when
     *         {@code out} is the model's own folder, has another model, or has an adapter, which PEFT would add to the merged
     *         weights once more
     */
    public static void merge(ModelFolder model, PeftAdapter adapter, Path out) throws IOException {
        if (Files.exists(out) && Files.isSameFile(out, model.directory())) {
            throw new IOException(out + ": expected a folder other than the model's own");
        }
        if (AdapterFiles.isAdapter(out)) {
            throw new IOException(out + ": expected a folder without an adapter, found one:"
                    + " PEFT would add it to the merged weights once more");
        }
        List<String> found = ModelFolder.filesIn(out);
        if (!found.isEmpty()) {
            throw new IOException(out + ": expected a folder without a model, found " + String.join(" and ", found)
                    + ": move it away or choose another folder");
        }
        Map<String, Tensor> weights = new TreeMap<>();
        for (String name : model.tensorNames()) {
            weights.put(name, model.tensor(name));
        }
        try (Arena arena = Arena.ofConfined()) {
            Map<String, Tensor> parts = adapter.tensors();
            boolean changed = false;
            for (String key : parts.keySet()) {
                // Each module has both, or the adapter would not have been read.
                if (key.endsWith(A)) {
                    String module = key.substring(KEY_PREFIX.length(), key.length() - A.length());
                    String name = weightOf(model, module, adapter.directory() + ": tensor " + key);
                    if (!weights.get(name).dtype().isFloat()) {
                        throw new IOException(model.directory() + ": tensor " + name + ": expected F32, BF16 or F16, found "
                                + weights.get(name).dtype());
                    }
                    Tensor merged = merged(arena, adapter.directory() + ": weight " + name, weights.get(name),
                            parts.get(key),
                            parts.get(KEY_PREFIX + module + B), adapter.config().scaling());
                    changed |= merged.segment().mismatch(weights.get(name).segment()) >= 0;
                    weights.put(name, merged);
                }
            }
            if (!changed) {
                throw new IOException(adapter.directory() + ": expected an adapter that changes a weight of "
                        + model.directory()
                        + ", found that merging changes none: it was not trained, or its changes are below"
                        + " the weights' precision");
            }
            try (RunLock alone = RunLock.acquire(out)) {
                SafetensorsWriter.write(out.resolve("model.safetensors"), weights, Map.of("format", "pt"));
                copyOthers(model.directory(), out);
            }
        }
    }

    /**
     * PEFT's keys have the causal model's names; some checkpoints store the decoder's alone.
     *
     * @param where begins a message
     */
    private static String weightOf(ModelFolder model, String module, String where) throws IOException {
        String name = module + ".weight";
        if (!model.has(name) && name.startsWith("model.")) {
            name = name.substring("model.".length());
        }
        if (!model.has(name)) {
            throw new IOException(
                    where + ": expected a weight " + module + ".weight in " + model.directory() + ", found none");
        }
        return name;
    }

    private static Tensor merged(Arena arena, String where, Tensor weight, Tensor a, Tensor b, double scaling)
            throws IOException {
        if (weight.shape().rank() != 2 || a.shape().rank() != 2 || b.shape().rank() != 2
                || a.shape().dim(1) != weight.shape().dim(1) || b.shape().dim(0) != weight.shape().dim(0)
                || a.shape().dim(0) != b.shape().dim(1)) {
            throw new IOException(where + ": expected A [r, in] and B [out, r] for its shape [out, in] = " + weight.shape()
                    + ", found " + a.shape() + " and " + b.shape());
        }
        int in = Math.toIntExact(weight.shape().dim(1));
        int rank = Math.toIntExact(a.shape().dim(0));
        float[] left = b.toFloats();
        float[] right = a.toFloats();
        Tensor result = Tensor.allocate(arena, weight.dtype(), weight.shape());
        double[] delta = new double[in];
        for (int row = 0; row < weight.shape().dim(0); row++) {
            Arrays.fill(delta, 0);
            for (int k = 0; k < rank; k++) {
                double factor = scaling * left[row * rank + k];
                for (int column = 0; column < in; column++) {
                    delta[column] += factor * right[k * in + column];
                }
            }
            float[] sums = weight.slice(0, row, row + 1).toFloats();
            for (int column = 0; column < in; column++) {
                // A sum with 0 would make 0 of -0.
                sums[column] = delta[column] == 0 ? sums[column] : (float) (sums[column] + delta[column]);
            }
            Tensor target = result.slice(0, row, row + 1);
            target.copyFrom(sums);
            for (float value : target.toFloats()) {
                if (!Float.isFinite(value)) {
                    throw new IOException(where + " row " + row + ": expected finite merged weights, found " + value);
                }
            }
        }
        return result;
    }

    /** Everything but weights; the configuration last, so that a folder that has it is whole. */
    private static void copyOthers(Path from, Path to) throws IOException {
        for (Path file : AtomicFiles.list(from)) {
            String name = file.getFileName().toString();
            boolean wanted = name.endsWith(".jinja") || name.endsWith(".txt")
                    || name.endsWith(".json") && !name.endsWith(".index.json") && !name.equals("config.json");
            if (wanted && Files.isRegularFile(file)) {
                copy(file, to.resolve(name));
            }
        }
        copy(from.resolve("config.json"), to.resolve("config.json"));
    }

    private static void copy(Path from, Path to) throws IOException {
        AtomicFiles.write(to, path -> Files.copy(from, path, StandardCopyOption.REPLACE_EXISTING));
    }
}
