package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Where a pass's buffers come from. The same code lays a pass out twice: once to plan, where tensors are descriptions that
 * nothing may read and operations only say what workspace they need, and once to run.
 */
public final class Buffers {

    private final Backend backend;
    private final @Nullable Arena owner;
    private final @Nullable MemoryPlan plan;
    private long workspaceBytes;
    private @Nullable Tensor workspace;

    private Buffers(Backend backend, @Nullable Arena owner, @Nullable MemoryPlan plan) {
        this.backend = backend;
        this.owner = owner;
        this.plan = plan;
    }

    public static Buffers planning(Backend backend, MemoryPlan plan) {
        return new Buffers(backend, null, plan);
    }

    public static Buffers allocating(Backend backend, Arena owner, long workspaceBytes) {
        Buffers buffers = new Buffers(backend, owner, null);
        if (workspaceBytes > 0) {
            buffers.workspace = backend.allocate(owner, DType.U8, Shape.of(workspaceBytes));
        }
        return buffers;
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

    /** Runs an operation, or, while planning, takes note of the workspace it needs. */
    public void run(Operation operation) {
        if (plan != null) {
            workspaceBytes = Math.max(workspaceBytes, backend.workspaceBytes(operation));
        } else {
            backend.run(operation);
        }
    }

    /** The workspace of operations that run; null where they need none, or are only planned. */
    @Nullable
    public Tensor workspace() {
        return workspace;
    }

    /** The largest workspace of the operations that were planned. */
    public long workspaceBytes() {
        return workspaceBytes;
    }
}
