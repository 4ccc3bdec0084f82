package dev.penumbra.jmh;

import dev.penumbra.backend.Device;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/** What other processes, and other guests of the host, took of the processors while something was measured. */
final class OtherWork {

    /** A machine that does nothing else uses about a hundredth; threads that wait for each other feel little more than that. */
    private static final double MOST_SHARE = 0.03;
    /**
     * A GPU's work is queued ahead, and the host only has to keep up: with 13% taken PyTorch's eager step of OPT-1.3B was as fast as
     * on a quiet machine (106 ms at 4 x 2048), with 48% a third slower.
     */
    private static final double MOST_SHARE_BESIDE_GPU = 0.2;

    private final long[] start;

    private OtherWork(long[] start) {
        this.start = start;
    }

    /** Watches from now on. */
    static OtherWork watch() throws IOException {
        return new OtherWork(ticks());
    }

    /** Their share of all processors' time since {@link #watch}; children of this process count as its own once they ended. */
    double share() throws IOException {
        long[] now = ticks();
        long all = now[0] - start[0];
        long others = now[1] - start[1];
        return all == 0 ? 0 : Math.max(0, (double) others / all);
    }

    /** @throws IllegalStateException when figures measured beside so much other work would say little */
    static void requireLittle(double share, Device.Kind device) {
        double most = device == Device.Kind.CPU ? MOST_SHARE : MOST_SHARE_BESIDE_GPU;
        if (share > most) {
            throw new IllegalStateException(String.format(
                    "expected other processes to take %.0f %% of the machine at most, found %.0f %%: nothing is recorded; run again",
                    100 * most, 100 * share));
        }
    }

    /** Processors' time in ticks: all of it; and what was neither idle nor this process's or its ended children's. */
    private static long[] ticks() throws IOException {
        // user nice system idle iowait irq softirq steal; guests are counted in user.
        String[] machine = Files.readString(Path.of("/proc/stat")).lines().findFirst().orElseThrow().split(" +");
        long[] columns = Arrays.stream(machine, 1, 9).mapToLong(Long::parseLong).toArray();
        long all = Arrays.stream(columns).sum();
        long idle = columns[3] + columns[4];
        // The name stands in brackets and may hold blanks; utime, stime, cutime and cstime are columns 14 to 17.
        String process = Files.readString(Path.of("/proc/self/stat"));
        String[] rest = process.substring(process.lastIndexOf(')') + 2).split(" ");
        long own = Arrays.stream(rest, 11, 15).mapToLong(Long::parseLong).sum();
        return new long[]{all, all - idle - own};
    }
}
