package dev.penumbra.backend;

import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.AdamW;
import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.backend.op.PredictMass;
import dev.penumbra.backend.op.RelativeMass;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.List;
import java.util.OptionalLong;
import org.jspecify.annotations.Nullable;

/**
 * A backend without native code: computes in plain Java on host memory, and keeps every operation it ran. It is stricter
 * than a device where that finds misuse: operations that have a workspace want one, and nothing works after close.
 */
public class FakeBackend implements Backend {

    private static final long WORKSPACE_BYTES = 64;

    private final boolean asynchronous;
    private final List<Operation> operations = new ArrayList<>();
    private int pendingReads;
    private long allocatedBytes;
    private OptionalLong freeBytes = OptionalLong.empty();
    private boolean closed;

    /** A weight W [out, in], as it is after rounding to the dtype that products are computed in. */
    record Weight(Form form, double[][] values, Arena owner, FakeBackend backend) implements FrozenWeight {
    }

    public FakeBackend() {
        this(false);
    }

    /** @param asynchronous whether reads are done only once they are asked for, as a device's are */
    public FakeBackend(boolean asynchronous) {
        this.asynchronous = asynchronous;
    }

    /** Reads whose values nobody has taken yet. */
    public int pendingReads() {
        return pendingReads;
    }

    /** What ran so far, in order. */
    public List<Operation> operations() {
        return List.copyOf(operations);
    }

    public void forgetOperations() {
        operations.clear();
    }

    /** Bytes that {@link #allocate} and {@link #pack} took so far: a step that allocates makes it grow. */
    public long allocatedBytes() {
        return allocatedBytes;
    }

    /** What {@link #freeBytes} says from now on; before, it does not know. */
    public void pretendFree(long bytes) {
        freeBytes = OptionalLong.of(bytes);
    }

    public boolean isClosed() {
        return closed;
    }

    @Override
    public Device device() {
        return Device.CPU;
    }

    @Override
    public String describe() {
        return "plain Java, for tests";
    }

    @Override
    public Tensor allocate(Arena owner, DType dtype, Shape shape) {
        requireOpen();
        allocatedBytes += shape.size() * dtype.byteSize();
        return Tensor.allocate(owner, dtype, shape);
    }

    @Override
    public void upload(Tensor source, Tensor target) {
        copy(source, target);
    }

    @Override
    public void download(Tensor source, Tensor target) {
        copy(source, target);
    }

    private void copy(Tensor source, Tensor target) {
        requireOpen();
        if (source.dtype() != target.dtype() || !source.shape().equals(target.shape())) {
            throw new IllegalArgumentException(
                    "expected a copy between equal dtypes and shapes, found " + source + " to " + target);
        }
        target.segment().copyFrom(source.segment());
    }

    @Override
    public HostStore hostStore(Arena owner, long bytes) {
        throw new UnsupportedOperationException(
                "expected a pass that offloads nothing, found " + bytes + " bytes to offload");
    }

    @Override
    public Readback read(Tensor source) {
        requireOpen();
        float[] values = source.toFloats();
        pendingReads++;
        return new Readback() {
            private boolean taken;

            @Override
            public boolean isDone() {
                return !asynchronous || taken;
            }

            @Override
            public float[] floats() {
                if (!taken) {
                    taken = true;
                    pendingReads--;
                }
                return values;
            }
        };
    }

    @Override
    public boolean isAsynchronous() {
        return asynchronous;
    }

    @Override
    public Graph capture(Arena owner, Runnable recorded) {
        requireOpen();
        return recorded::run;
    }

    @Override
    public double milliseconds(Runnable timed) {
        timed.run();
        return 0;
    }

    @Override
    public OptionalLong freeBytes() {
        return freeBytes;
    }

    @Override
    public OptionalLong hostFreeBytes() {
        return OptionalLong.empty();
    }

    @Override
    public long packedBytes(FrozenWeight.Form form) {
        return form.out() * form.in() * form.dtype().byteSize();
    }

    @Override
    public FrozenWeight planned(Arena owner, FrozenWeight.Form form) {
        requireOpen();
        return () -> form;
    }

    @Override
    public FrozenWeight pack(Arena owner, FrozenWeight.Form form, List<Tensor> parts) {
        requireOpen();
        allocatedBytes += packedBytes(form);
        double[][] values = new double[Math.toIntExact(form.out())][Math.toIntExact(form.in())];
        int row = 0;
        for (Tensor part : parts) {
            for (int i = 0; i < part.shape().dim(0); i++, row++) {
                for (int j = 0; j < form.in(); j++) {
                    values[row][j] = Elements.rounded(form.dtype(), Elements.get(part, i, j));
                }
            }
        }
        if (row != form.out()) {
            throw new IllegalArgumentException("expected parts of " + form.out() + " rows together, found " + row);
        }
        return new Weight(form, values, owner, this);
    }

    @Override
    public void run(Operation operation) {
        requireOpen();
        operations.add(operation);
        switch (operation) {
            case Fill op -> ReferenceOps.fill(op);
            case Convert op -> ReferenceOps.convert(op);
            case Gemm op -> {
                requireOpen(op.weight());
                requireWorkspace(op, op.workspace());
                requireBlocks(op);
                ReferenceOps.gemm(op);
            }
            case LoraProject op -> ReferenceOps.loraProject(op);
            case LoraGradients op -> {
                requireWorkspace(op, op.workspace());
                ReferenceOps.loraGradients(op);
            }
            case AttentionForward op -> ReferenceAttention.forward(op);
            case AttentionBackward op -> {
                requireWorkspace(op, op.workspace());
                ReferenceAttention.backward(op);
            }
            case LayerNormForward op -> ReferenceOps.layerNormForward(op);
            case LayerNormBackward op -> ReferenceOps.layerNormBackward(op);
            case Embedding op -> ReferenceOps.embedding(op);
            case LinearCrossEntropy op -> {
                requireOpen(op.weight());
                requireWorkspace(op, op.workspace());
                ReferenceOps.linearCrossEntropy(op);
            }
            case AdamW op -> {
                requireWorkspace(op, op.workspace());
                ReferenceOps.adamw(op);
            }
            case ActivationMass op -> {
                requireWorkspace(op, op.workspace());
                ReferenceBlocks.activationMass(op);
            }
            case PredictMass op -> {
                requireWorkspace(op, op.workspace());
                ReferenceBlocks.predictMass(op);
            }
            case RelativeMass op -> ReferenceBlocks.relativeMass(op);
            case SelectBlocks op -> ReferenceBlocks.selectBlocks(op);
            case AttentionMass op -> ReferenceAttention.mass(op);
            case PredictAttention op -> {
                requireWorkspace(op, op.workspace());
                ReferenceAttention.predict(op);
            }
            case SelectAttention op -> {
                requireWorkspace(op, op.workspace());
                ReferenceAttention.select(op);
            }
        }
    }

    @Override
    public long workspaceBytes(Operation operation) {
        return switch (operation) {
            case Gemm op -> WORKSPACE_BYTES;
            case LoraGradients op -> WORKSPACE_BYTES;
            case AttentionBackward op -> WORKSPACE_BYTES;
            case LinearCrossEntropy op -> WORKSPACE_BYTES;
            case AdamW op -> WORKSPACE_BYTES;
            case ActivationMass op -> WORKSPACE_BYTES;
            case PredictMass op -> WORKSPACE_BYTES;
            case PredictAttention op -> WORKSPACE_BYTES;
            case SelectAttention op -> WORKSPACE_BYTES;
            default -> 0;
        };
    }

    @Override
    public long findNotFinite(Tensor host) {
        float[] values = host.toFloats();
        for (int i = 0; i < values.length; i++) {
            if (!Float.isFinite(values[i])) {
                return i;
            }
        }
        return -1;
    }

    @Override
    public long internalBytes() {
        return 0;
    }

    @Override
    public void synchronize() {
        requireOpen();
    }

    @Override
    public void close() {
        closed = true;
    }

    private void requireOpen() {
        if (closed) {
            throw new IllegalStateException("expected an open backend: this one was closed");
        }
    }

    private void requireOpen(@Nullable FrozenWeight weight) {
        if (weight instanceof Weight packed && (packed.backend() != this || !packed.owner().scope().isAlive())) {
            throw new IllegalStateException("expected an open weight of this backend, found a closed or another one's");
        }
    }

    private static void requireBlocks(Gemm op) {
        if (op.blocks() == null || op.weight() == null) {
            return;
        }
        boolean forward = op.use() == FrozenWeight.Use.FORWARD;
        Tensor compact = forward ? op.d() : op.a();
        if (compact.shape().dim(1) != op.blocks().width() || op.weight().form().out() % op.blocks().size() != 0) {
            throw new IllegalArgumentException("expected a compact matrix of " + op.blocks().width()
                    + " columns over a weight of whole blocks, found " + compact + " over " + op.weight().form());
        }
        if (forward && op.residual() != null) {
            throw new IllegalArgumentException("expected no residual of a compact product, found " + op.residual());
        }
    }

    private static void requireWorkspace(Operation operation, @Nullable Tensor workspace) {
        if (workspace == null || workspace.byteSize() < WORKSPACE_BYTES) {
            throw new IllegalArgumentException("expected a workspace of " + WORKSPACE_BYTES + " bytes for "
                    + operation.getClass().getSimpleName() + ", found " + workspace);
        }
    }
}
