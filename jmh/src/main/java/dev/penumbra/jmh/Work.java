package dev.penumbra.jmh;

import dev.penumbra.backend.op.Operation;
import java.util.List;

/**
 * What one call of a benchmark runs, and how much work that is.
 *
 * @param operations one after another, timed as one
 * @param flops 0 where memory decides the time
 * @param bytes that must cross memory at least once; 0 where arithmetic decides the time
 */
record Work(List<? extends Operation> operations, long flops, long bytes) {

    Work(Operation operation, long flops, long bytes) {
        this(List.of(operation), flops, bytes);
    }

    /** An operation that counts its arithmetic itself. */
    Work(Operation operation) {
        this(operation, operation.flops(), 0);
    }
}
