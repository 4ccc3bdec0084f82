package dev.penumbra.cli;

import dev.penumbra.backend.Backend;
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
        out.printf("jvm     %s (%s)%n", Runtime.version(), System.getProperty("java.vm.vendor"));
        out.printf("memory  %d MiB heap at most%n", Runtime.getRuntime().maxMemory() >> 20);
        try (Backend cpu = Backends.open(Device.CPU, 0, true)) {
            out.printf("cpu     %s%n", cpu.describe());
        }
        try (Backend cuda = Backends.open(Device.cuda(0), 0, true)) {
            out.printf("cuda    %s%n", cuda.describe());
        } catch (RuntimeException unavailable) {
            out.printf("cuda    not usable: %s%n", unavailable.getMessage());
        }
        return 0;
    }
}
