package dev.penumbra.internal.ffi;

import dev.penumbra.backend.BackendException;
import dev.penumbra.backend.BackendException.Status;
import dev.penumbra.internal.ffi.cuda.Cuda;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/** The one place where a driver's {@code CUresult} becomes an exception. */
final class CudaStatus {

    private CudaStatus() {
    }

    /** @param what the call and what it was for, as the message begins */
    static void check(int result, String what) {
        if (result != Cuda.CUDA_SUCCESS()) {
            throw new BackendException(
                    result == Cuda.CUDA_ERROR_OUT_OF_MEMORY() ? Status.OUT_OF_MEMORY : Status.DEVICE,
                    what + ": " + text(result));
        }
    }

    /** The driver's name and sentence for a result. */
    static String text(int result) {
        try (Arena call = Arena.ofConfined()) {
            MemorySegment pointer = call.allocate(Cuda.C_POINTER);
            if (Cuda.cuGetErrorName(result, pointer) != Cuda.CUDA_SUCCESS()) {
                return "CUDA error " + result;
            }
            String name = pointer.get(Cuda.C_POINTER, 0).reinterpret(Long.MAX_VALUE).getString(0);
            Cuda.cuGetErrorString(result, pointer);
            return pointer.get(Cuda.C_POINTER, 0).reinterpret(Long.MAX_VALUE).getString(0) + " (" + name + ")";
        }
    }
}
