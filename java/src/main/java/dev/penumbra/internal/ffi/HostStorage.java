package dev.penumbra.internal.ffi;

import dev.penumbra.backend.HostStore;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.util.List;

/** A store's memory, in which tensors lie one after another. */
abstract class HostStorage implements HostStore {

    private final MemorySegment memory;

    HostStorage(MemorySegment memory) {
        this.memory = memory;
    }

    abstract void copyOut(Tensor from, MemorySegment to);

    abstract void copyBack(MemorySegment from, Tensor to);

    private interface Copy {
        void run(Tensor tensor, MemorySegment place);
    }

    @Override
    public void store(List<Tensor> tensors) {
        forEach(tensors, this::copyOut);
    }

    @Override
    public void restore(List<Tensor> tensors) {
        forEach(tensors, (tensor, place) -> copyBack(place, tensor));
    }

    private void forEach(List<Tensor> tensors, Copy copy) {
        long bytes = tensors.stream().mapToLong(Tensor::byteSize).sum();
        if (bytes > memory.byteSize() || !tensors.stream().allMatch(Tensor::isContiguous)) {
            throw new IllegalArgumentException(
                    "expected contiguous tensors of at most " + memory.byteSize() + " bytes, found " + tensors);
        }
        long at = 0;
        for (Tensor tensor : tensors) {
            copy.run(tensor, memory.asSlice(at, tensor.byteSize()));
            at += tensor.byteSize();
        }
    }
}
