package dev.penumbra.internal.ffi;

import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/** An operation's params struct, and the C functions that take it. */
record NativeCall(MemorySegment params, Entry entry, @Nullable Query workspace) {

    /** {@code pnb_status pnb_op(context, params)}. */
    interface Entry {
        int call(MemorySegment context, MemorySegment params);
    }

    /** {@code pnb_status pnb_op_workspace(context, params, bytes)}. */
    interface Query {
        int call(MemorySegment context, MemorySegment params, MemorySegment bytes);
    }
}
