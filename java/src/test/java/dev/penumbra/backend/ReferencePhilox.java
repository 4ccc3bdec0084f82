package dev.penumbra.backend;

import dev.penumbra.backend.op.Dropout;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/** Dropout as {@code gemm.h} specifies it, on Philox4x32-10. */
final class ReferencePhilox {

    private ReferencePhilox() {
    }

    /** What element {@code e} is multiplied with: 0, or 1 / (1 − p). */
    static double factor(@Nullable Dropout dropout, long e) {
        if (dropout == null) {
            return 1;
        }
        long seed = dropout.state().segment().getAtIndex(ValueLayout.JAVA_LONG_UNALIGNED, 0);
        long offset = dropout.state().segment().getAtIndex(ValueLayout.JAVA_LONG_UNALIGNED, 1);
        long key = seed ^ (Integer.toUnsignedLong(dropout.stream()) * 0x9E3779B97F4A7C15L);
        int word = philox(e / 4, offset, key)[(int) (e % 4)];
        boolean dropped = Integer.toUnsignedLong(word) < Math.round(dropout.p() * 4294967296.0);
        return dropped ? 0 : 1 / (1 - (double) dropout.p());
    }

    static int[] philox(long counterLow, long counterHigh, long key) {
        int[] c = {(int) counterLow, (int) (counterLow >>> 32), (int) counterHigh, (int) (counterHigh >>> 32)};
        int k0 = (int) key;
        int k1 = (int) (key >>> 32);
        for (int round = 0; round < 10; round++) {
            long p0 = Integer.toUnsignedLong(c[0]) * 0xD2511F53L;
            long p1 = Integer.toUnsignedLong(c[2]) * 0xCD9E8D57L;
            c = new int[]{(int) (p1 >>> 32) ^ c[1] ^ k0, (int) p1, (int) (p0 >>> 32) ^ c[3] ^ k1, (int) p0};
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        return c;
    }
}
