package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * Where a pass's buffers come from. The same code lays a pass out twice: once to plan, where tensors are descriptions that
 * nothing may read and operations only say what workspace they need, and once to run.
 */
final class Buffers {

    /** Planned tensors have some address, because an address of 0 says "absent". */
    private static final MemorySegment PLANNED = MemorySegment.ofAddress(256);

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

    static Buffers planning(Backend backend, MemoryPlan plan) {
        return new Buffers(backend, null, plan);
    }

    static Buffers allocating(Backend backend, Arena owner, long workspaceBytes) {
        Buffers buffers = new Buffers(backend, owner, null);
        if (workspaceBytes > 0) {
            buffers.workspace = backend.allocate(owner, DType.U8, Shape.of(workspaceBytes));
        }
        return buffers;
    }

    boolean isPlanning() {
        return plan != null;
    }

    Tensor allocate(MemoryPlan.Kind kind, String name, DType dtype, long... dims) {
        Shape shape = Shape.of(dims);
        if (plan != null) {
            plan.add(kind, name, shape.size() * dtype.byteSize());
            return Tensor.deviceView(PLANNED, dtype, shape);
        }
        return backend.allocate(java.util.Objects.requireNonNull(owner), dtype, shape);
    }

    /** Runs an operation, or, while planning, takes note of the workspace it needs. */
    void run(Operation operation) {
        if (isPlanning()) {
            workspaceBytes = Math.max(workspaceBytes, backend.workspaceBytes(operation));
        } else {
            backend.run(operation);
        }
    }

    @Nullable
    Tensor workspace() {
        return workspace;
    }

    /** The largest workspace of the operations that were planned. */
    long workspaceBytes() {
        return workspaceBytes;
    }
}
