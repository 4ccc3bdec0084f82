package dev.penumbra.train;

import dev.penumbra.backend.op.AdamW;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.Buffers;
import dev.penumbra.model.MemoryPlan;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;

/** What a step keeps beside its pass: gradients, AdamW's moments, and a few numbers, all f32 on the adapter's backend. */
final class OptimizerState {

    private static final float BETA1 = 0.9f;
    private static final float BETA2 = 0.999f;
    private static final float EPSILON = 1e-8f;

    /** Laid out as the adapter's parameters. */
    final Tensor grad;

    final Tensor m;
    final Tensor v;
    /** [1]: the norm of grad before clipping. */
    final Tensor gradNorm;
    /** [1]: a step's sum of losses. */
    final Tensor loss;
    /** [1]: what every loss's gradient is multiplied by. */
    final Tensor gradScale;

    /** [3]: rate, 1 − β1^t, 1 − β2^t. */
    private final Tensor schedule;

    private final Buffers buffers;
    private final LoraAdapter adapter;
    private final TrainConfig config;

    private OptimizerState(Buffers buffers, LoraAdapter adapter, TrainConfig config) {
        this.buffers = buffers;
        this.adapter = adapter;
        this.config = config;
        long n = adapter.parameters().shape().size();
        grad = f32("gradients", n);
        m = f32("m", n);
        v = f32("v", n);
        schedule = f32("schedule", 3);
        gradNorm = f32("gradient norm", 1);
        loss = f32("loss", 1);
        gradScale = f32("gradient scale", 1);
    }

    private Tensor f32(String name, long n) {
        return buffers.allocate(MemoryPlan.Kind.OPTIMIZER, name, DType.F32, n);
    }

    /** Adds what {@link #allocate} allocates; returns the bytes of workspace among it. */
    static long plan(MemoryPlan plan, LoraAdapter adapter, TrainConfig config) {
        Buffers planning = Buffers.planning(adapter.backend(), plan);
        new OptimizerState(planning, adapter, config).update();
        plan.add(MemoryPlan.Kind.WORKSPACE, "optimizer workspace", planning.sharedBytes());
        return planning.sharedBytes();
    }

    static OptimizerState allocate(Arena owner, LoraAdapter adapter, TrainConfig config) {
        long workspace = plan(new MemoryPlan(), adapter, config);
        return new OptimizerState(Buffers.allocating(adapter.backend(), owner, workspace), adapter, config);
    }

    /** Sets the rate of a step, counted from 1. */
    void schedule(int step, double lr) {
        Scalars.write(adapter.backend(), schedule, (float) lr, (float) (1 - Math.pow(BETA1, step)),
                (float) (1 - Math.pow(BETA2, step)));
    }

    /** Clips the gradients, updates the adapter and the moments, and writes gradNorm. */
    void update() {
        buffers.run(new AdamW(adapter.parameters(), grad, m, v, BETA1, BETA2, EPSILON, (float) config.weightDecay(),
                (float) config.clip(), schedule, gradNorm, buffers.workspace()));
    }
}
