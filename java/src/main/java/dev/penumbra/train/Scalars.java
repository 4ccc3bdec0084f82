package dev.penumbra.train;

import dev.penumbra.backend.Backend;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;

/** Single numbers to and from a backend. */
final class Scalars {

    private Scalars() {
    }

    static float read(Backend backend, Tensor scalar) {
        return backend.toFloats(scalar)[0];
    }

    static void write(Backend backend, Tensor target, float... values) {
        try (Arena arena = Arena.ofConfined()) {
            backend.upload(Tensor.of(arena, values), target);
        }
    }
}
