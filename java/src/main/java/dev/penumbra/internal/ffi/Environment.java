package dev.penumbra.internal.ffi;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;

/** The process's environment as native code sees it; Java's own view of it never changes. */
final class Environment {

    private Environment() {
    }

    /** Sets a variable unless it is there already. */
    static void setIfAbsent(String name, String value) {
        Linker linker = Linker.nativeLinker();
        MethodHandle setenv = linker.downcallHandle(
                linker.defaultLookup().find("setenv").orElseThrow(),
                FunctionDescriptor.of(ValueLayout.JAVA_INT, ValueLayout.ADDRESS, ValueLayout.ADDRESS, ValueLayout.JAVA_INT));
        try (Arena call = Arena.ofConfined()) {
            int result = (int) setenv.invokeExact(call.allocateFrom(name), call.allocateFrom(value), 0);
            if (result != 0) {
                throw new IllegalStateException(
                        "expected to set " + name + "=" + value + ", found setenv failing with " + result);
            }
        } catch (RuntimeException e) {
            throw e;
        } catch (Throwable e) {
            throw new IllegalStateException("cannot set " + name, e);
        }
    }
}
