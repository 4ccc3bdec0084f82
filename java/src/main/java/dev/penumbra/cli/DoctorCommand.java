package dev.penumbra.cli;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.BackendException;
import dev.penumbra.backend.Backends;
import dev.penumbra.backend.Device;
import java.io.PrintWriter;
import java.util.concurrent.Callable;
import picocli.CommandLine.Command;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Spec;

/** Says what this machine can do: the JVM, the native library, each device or the reason it cannot be used. */
@Command(name = "doctor", description = "Say what this machine can do, and what is missing.", mixinStandardHelpOptions = true)
final class DoctorCommand implements Callable<Integer> {

    @Spec
    private CommandSpec spec;

    @Override
    public Integer call() {
        PrintWriter out = spec.commandLine().getOut();
        out.printf("%-8s%s (%s)%n", "jvm", Runtime.version(), System.getProperty("java.vm.vendor"));
        out.printf("%-8s%d MiB at most%n", "heap", Runtime.getRuntime().maxMemory() >> 20);
        describe(out, Device.CPU);
        int gpu = 0;
        while (describe(out, Device.cuda(gpu))) {
            gpu++;
        }
        return 0;
    }

    /** A line on a device, or on why it cannot be used; of GPUs, the one after the last is left out. */
    private static boolean describe(PrintWriter out, Device device) {
        try (Backend backend = Backends.open(device, 0, true)) {
            String free = backend.freeBytes().isPresent()
                    ? ", " + (backend.freeBytes().getAsLong() >> 20) + " MiB free"
                    : "";
            out.printf("%-8s%s%s%n", device, backend.describe(), free);
            return true;
        } catch (BackendException unusable) {
            if (device.ordinal() == 0) {
                out.printf("%-8snot usable: %s%n", device, unusable.getMessage());
            }
            return false;
        }
    }
}
