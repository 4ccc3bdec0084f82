package dev.penumbra.internal.ffi;

import dev.penumbra.backend.BackendException;
import dev.penumbra.backend.Graph;
import dev.penumbra.backend.HostStore;
import dev.penumbra.backend.Readback;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.OptionalLong;

/** The CPU computes within the call, in the memory of the JVM's process: there is nothing to wait for. */
final class HostMemory implements DeviceMemory {

    @Override
    public MemorySegment stream() {
        return MemorySegment.NULL;
    }

    @Override
    public Tensor allocate(Arena owner, DType dtype, Shape shape) {
        try {
            return Tensor.allocate(owner, dtype, shape);
        } catch (OutOfMemoryError e) {
            throw new BackendException(
                    BackendException.Status.OUT_OF_MEMORY,
                    "expected " + shape.size() * dtype.byteSize() + " bytes of host memory for " + dtype + shape
                            + ", found less",
                    e);
        }
    }

    @Override
    public void upload(Tensor source, Tensor target) {
        MemorySegment.copy(source.segment(), 0, target.segment(), 0, source.byteSize());
    }

    @Override
    public void download(Tensor source, Tensor target) {
        upload(source, target);
    }

    @Override
    public Readback read(Tensor source) {
        float[] values = source.toFloats();
        return new Readback() {
            @Override
            public boolean isDone() {
                return true;
            }

            @Override
            public float[] floats() {
                return values;
            }
        };
    }

    @Override
    public HostStore hostStore(Arena owner, long bytes) {
        Tensor room = allocate(owner, DType.F32, Shape.of(Math.ceilDiv(bytes, Float.BYTES)));
        return new HostStorage(room.segment().asSlice(0, bytes)) {
            @Override
            void copyOut(Tensor from, MemorySegment to) {
                to.copyFrom(from.segment());
            }

            @Override
            void copyBack(MemorySegment from, Tensor to) {
                to.segment().copyFrom(from);
            }

            @Override
            public void await() {
                // copies are done when they return
            }
        };
    }

    @Override
    public boolean isAsynchronous() {
        return false;
    }

    @Override
    public Graph capture(Arena owner, Runnable operations) {
        return operations::run;
    }

    @Override
    public double milliseconds(Runnable operations) {
        long start = System.nanoTime();
        operations.run();
        return (System.nanoTime() - start) / 1e6;
    }

    @Override
    public OptionalLong freeBytes() {
        return availableBytes();
    }

    /** What Linux says is available without swapping, within this process's limits. */
    static OptionalLong availableBytes() {
        try {
            for (String line : Files.readAllLines(Path.of("/proc/meminfo"))) {
                if (line.startsWith("MemAvailable:")) {
                    long available = Long.parseLong(line.replaceAll("\\D", "")) * 1024;
                    return OptionalLong.of(Math.min(available, ControlGroups.freeBytes().orElse(available)));
                }
            }
        } catch (IOException | NumberFormatException unknown) {
            return OptionalLong.empty();
        }
        return OptionalLong.empty();
    }

    @Override
    public void synchronize() {
        // nothing is ever pending
    }

    @Override
    public void close() {
        // arenas own all host memory
    }
}
