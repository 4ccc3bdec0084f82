package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.HostStore;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.List;
import java.util.Objects;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * Where a pass's buffers come from. The same code lays a pass out twice: once to plan, where tensors are descriptions that
 * nothing may read and operations only say what workspace they need, and once to run.
 *
 * <p>What lives within some {@link Stage}s of a pass only, operations' workspace among it, shares memory with what lives within
 * others.
 */
public class Buffers {

    private static final long ALIGNMENT = 256;

    private static final HostStore PLANNED_STORE = new HostStore() {
        @Override
        public void store(List<Tensor> tensors) {
            // only planned
        }

        @Override
        public void restore(List<Tensor> tensors) {
            // only planned
        }

        @Override
        public void await() {
            // only planned
        }
    };

    private final Backend backend;
    private final @Nullable Arena owner;
    private final @Nullable MemoryPlan plan;
    private final @Nullable Tensor shared;
    /** Bytes of shared memory that tensors have, by stage. */
    private final long[] taken = new long[Stage.values().length];
    /** Bytes that planned operations need beside these. */
    private final long[] workspaceBytes = new long[taken.length];
    private Stage stage = Stage.EMBEDDING;

    Buffers(Backend backend, @Nullable Arena owner, @Nullable MemoryPlan plan, long sharedBytes) {
        this.backend = backend;
        this.owner = owner;
        this.plan = plan;
        shared = sharedBytes == 0
                ? null
                : backend.allocate(Objects.requireNonNull(owner), DType.U8, Shape.of(sharedBytes));
    }

    public static Buffers planning(Backend backend, MemoryPlan plan) {
        return new Buffers(backend, null, plan, 0);
    }

    /** @param sharedBytes what planning found */
    public static Buffers allocating(Backend backend, Arena owner, long sharedBytes) {
        return new Buffers(backend, owner, null, sharedBytes);
    }

    /** Whether operations are planned, not run. */
    public boolean isPlanning() {
        return plan != null;
    }

    public Tensor allocate(MemoryPlan.Kind kind, String name, DType dtype, long... dims) {
        Shape shape = Shape.of(dims);
        if (plan != null) {
            plan.add(kind, name, shape.size() * dtype.byteSize());
            return Tensor.planned(dtype, shape);
        }
        return backend.allocate(Objects.requireNonNull(owner), dtype, shape);
    }

    /** Memory that a pass writes. */
    Tensor activations(String name, DType dtype, long... dims) {
        return allocate(MemoryPlan.Kind.ACTIVATIONS, name, dtype, dims);
    }

    /**
     * Memory of what lives within the given stages only: its contents, to begin with in any state, last as long as one of these
     * follows another. All of it is asked for before the first operation.
     */
    Tensor passing(Set<Stage> stages, DType dtype, long... dims) {
        Shape shape = Shape.of(dims);
        long from = stages.stream().mapToLong(in -> taken[in.ordinal()]).max().orElseThrow();
        long to = from + shape.size() * dtype.byteSize();
        stages.forEach(in -> taken[in.ordinal()] = Math.ceilDiv(to, ALIGNMENT) * ALIGNMENT);
        return plan != null
                ? Tensor.planned(dtype, shape)
                : Objects.requireNonNull(shared).slice(0, from, to).as(dtype).reshape(dims);
    }

    /** Begins a stage: what is run from now on belongs to it. */
    void begin(Stage next) {
        stage = next;
    }

    /** Memory with contents that are there from the start, rounded to a float dtype. */
    Tensor constant(String name, DType dtype, float[] values, long... dims) {
        Tensor device = activations(name, dtype, dims);
        if (!isPlanning()) {
            try (Arena arena = Arena.ofConfined()) {
                Tensor host = Tensor.allocate(arena, dtype, device.shape());
                host.copyFrom(values);
                backend.upload(host, device);
            }
        }
        return device;
    }

    /** Host memory from which inputs are uploaded. */
    Tensor stage(String name, DType dtype, long... dims) {
        Shape shape = Shape.of(dims);
        if (plan != null) {
            plan.add(MemoryPlan.Kind.HOST, name, shape.size() * dtype.byteSize());
            return Tensor.planned(dtype, shape);
        }
        return Tensor.allocate(Objects.requireNonNull(owner), dtype, shape);
    }

    /** Host memory that device tensors' contents can wait in. */
    HostStore hostStore(String name, long bytes) {
        if (plan != null) {
            plan.add(MemoryPlan.Kind.HOST, name, bytes);
            return PLANNED_STORE;
        }
        return backend.hostStore(Objects.requireNonNull(owner), bytes);
    }

    /** Runs an operation, or, while planning, takes note of the workspace it needs. */
    public void run(Operation operation) {
        if (plan != null) {
            int at = stage.ordinal();
            workspaceBytes[at] = Math.max(workspaceBytes[at], backend.workspaceBytes(operation));
        } else {
            backend.run(operation);
        }
    }

    /** The workspace of operations that run in the stage that was begun; null where they need none, or are only planned. */
    @Nullable
    public Tensor workspace() {
        long from = taken[stage.ordinal()];
        return shared == null || from >= shared.shape().size() ? null : shared.slice(0, from, shared.shape().size());
    }

    /** Bytes of shared memory that planning found. */
    public long sharedBytes() {
        long most = 0;
        for (int i = 0; i < taken.length; i++) {
            most = Math.max(most, taken[i] + workspaceBytes[i]);
        }
        return most;
    }
}
