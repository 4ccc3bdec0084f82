package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/**
 * Buffers of which each lies by itself, and that a stage begins with NaN in, but for what it takes over from the stage before. A
 * pass that reads more than it says it keeps gives NaN here, and one that writes in a stage to what it does not say it needs there
 * gives something else where buffers share memory.
 */
public final class ForgetfulBuffers extends Buffers {

    private record Passing(Set<Stage> stages, Tensor tensor) {
    }

    private final Backend backend;
    private final List<Passing> passing = new ArrayList<>();
    private Stage before = Stage.HEAD;

    private ForgetfulBuffers(Opt model, Arena owner, long sharedBytes) {
        super(model.backend(), owner, null, sharedBytes);
        backend = model.backend();
    }

    /** As {@link LanguageModel#openPass(Arena, LoraAdapter, PassShape, PassOptions)}, of an OPT model. */
    public static ModelPass open(LanguageModel model, Arena owner, LoraAdapter adapter, PassShape shape,
            PassOptions options) {
        Opt opt = (Opt) model;
        long shared = OptPass.plan(opt, adapter, shape, options, new MemoryPlan());
        return new OptPass(opt, adapter, shape, options, new ForgetfulBuffers(opt, owner, shared));
    }

    @Override
    Tensor passing(Set<Stage> stages, DType dtype, long... dims) {
        super.passing(stages, dtype, dims);
        Tensor tensor = activations("by itself", dtype, dims);
        passing.add(new Passing(stages, tensor));
        return tensor;
    }

    @Override
    void begin(Stage next) {
        super.begin(next);
        if (before != next) {
            passing.stream().filter(p -> !p.stages.contains(next) || !p.stages.contains(before)).map(Passing::tensor)
                    .forEach(this::forget);
            Tensor workspace = workspace();
            if (workspace != null) {
                forget(workspace);
            }
        }
        before = next;
    }

    /** Bytes that make a NaN in each float dtype. */
    private void forget(Tensor tensor) {
        try (Arena arena = Arena.ofConfined()) {
            Tensor lost = Tensor.allocate(arena, tensor.dtype(), tensor.shape());
            lost.segment().fill((byte) 0xff);
            backend.upload(lost, tensor);
        }
    }
}
