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

    private static final long ALIGNMENT = 256;

    private final Backend backend;
    private final @Nullable Arena owner;
    private final @Nullable MemoryPlan plan;
    private long workspaceBytes;
    private @Nullable Tensor workspace;
    private long passingBytes;
    private long aloneBytes;
    private @Nullable Tensor passing;

    /**
     * Bytes that planning found.
     *
     * @param workspace the largest of the operations that {@link #run} ran
     * @param passing room for all {@link #passing} tensors, and for the workspace of what {@link #runAlone} ran
     */
    record Sizes(long workspace, long passing) {
    }

    private Buffers(Backend backend, @Nullable Arena owner, @Nullable MemoryPlan plan) {
        this.backend = backend;
        this.owner = owner;
        this.plan = plan;
    }

    public static Buffers planning(Backend backend, MemoryPlan plan) {
        return new Buffers(backend, null, plan);
    }

    public static Buffers allocating(Backend backend, Arena owner, long workspaceBytes) {
        return allocating(backend, owner, new Sizes(workspaceBytes, 0));
    }

    static Buffers allocating(Backend backend, Arena owner, Sizes sizes) {
        Buffers buffers = new Buffers(backend, owner, null);
        buffers.workspace = buffers.bytes(sizes.workspace);
        buffers.passing = buffers.bytes(sizes.passing);
        return buffers;
    }

    private @Nullable Tensor bytes(long count) {
        return count == 0 ? null : backend.allocate(Objects.requireNonNull(owner), DType.U8, Shape.of(count));
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
     * Memory of what lives within a layer's forward or backward pass only, to begin with in any state. What is
     * {@link #runAlone run alone} has its workspace there.
     */
    Tensor passing(DType dtype, long... dims) {
        Shape shape = Shape.of(dims);
        long from = passingBytes;
        long bytes = shape.size() * dtype.byteSize();
        passingBytes = Math.ceilDiv(from + bytes, ALIGNMENT) * ALIGNMENT;
        return plan != null
                ? Tensor.planned(dtype, shape)
                : Objects.requireNonNull(passing).slice(0, from, from + bytes).as(dtype).reshape(dims);
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

    /** As {@link #run}, of an operation outside of all layers, whose workspace is {@link #workspaceAlone}. */
    void runAlone(Operation operation) {
        if (plan != null) {
            aloneBytes = Math.max(aloneBytes, backend.workspaceBytes(operation));
        } else {
            backend.run(operation);
        }
    }

    /** As {@link #workspace}, of what is run alone. */
    @Nullable
    Tensor workspaceAlone() {
        return passing;
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

    /** What was planned. */
    Sizes sizes() {
        return new Sizes(workspaceBytes, Math.max(passingBytes, aloneBytes));
    }
}
