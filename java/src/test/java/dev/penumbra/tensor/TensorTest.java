package dev.penumbra.tensor;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;

class TensorTest {

    private static float rounded(Arena arena, DType dtype, float value) {
        Tensor tensor = Tensor.allocate(arena, dtype, Shape.of(3));
        tensor.copyFrom(new float[]{1, value, 1});
        assertThat(tensor.toFloats()[0]).isEqualTo(1);
        assertThat(tensor.toFloats()[2]).isEqualTo(1);
        return tensor.toFloats()[1];
    }

    @Test
    void bf16IsTheNearestAndOfTwoTheEvenOne() {
        try (Arena arena = Arena.ofConfined()) {
            assertThat(rounded(arena, DType.BF16, 1 + 0x1p-8f)).as("between 1 and the odd one").isEqualTo(1);
            assertThat(rounded(arena, DType.BF16, 1 + 0x3p-8f)).as("between the odd one and an even").isEqualTo(1 + 0x1p-6f);
            assertThat(rounded(arena, DType.BF16, 1 + 0x1.02p-8f)).isEqualTo(1 + 0x1p-7f);
            assertThat(rounded(arena, DType.BF16, Float.MAX_VALUE)).isInfinite();
            assertThat(rounded(arena, DType.BF16, Float.NEGATIVE_INFINITY)).isEqualTo(Float.NEGATIVE_INFINITY);
            assertThat(Float.floatToRawIntBits(rounded(arena, DType.BF16, -0f))).isEqualTo(Integer.MIN_VALUE);
            for (int bits : new int[]{0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF80FFFF}) {
                assertThat(rounded(arena, DType.BF16, Float.intBitsToFloat(bits))).as(Integer.toHexString(bits)).isNaN();
            }
            SplittableRandom random = new SplittableRandom(3);
            for (int i = 0; i < 10_000; i++) {
                float value = Float.intBitsToFloat(random.nextInt());
                if (Float.isFinite(value) && Math.abs(value) < 0x1p126f) {
                    float near = rounded(arena, DType.BF16, value);
                    float step = Math.max(0x1p-133f, Math.scalb(1f, Math.getExponent(value) - 7));
                    assertThat(Math.abs((double) near - value)).as("%a", value).isLessThanOrEqualTo(step / 2.0);
                }
            }
        }
    }

    @Test
    void otherFloatsAreWrittenTooAndOtherTypesAreRefused() {
        try (Arena arena = Arena.ofConfined()) {
            assertThat(rounded(arena, DType.F16, 1 + 0x1p-11f)).isEqualTo(1);
            assertThat(rounded(arena, DType.F16, 70_000)).isInfinite();
            assertThat(rounded(arena, DType.F32, Math.nextUp(1f))).isEqualTo(Math.nextUp(1f));
            Tensor ints = Tensor.allocate(arena, DType.I32, Shape.of(2));
            assertThatThrownBy(() -> ints.copyFrom(new float[2])).isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("expected 2 elements of a float dtype, found I32[2]");
            ints.copyFrom(new int[]{3, -4});
            assertThat(ints.segment().toArray(ValueLayout.JAVA_INT)).containsExactly(3, -4);
            assertThatThrownBy(() -> ints.copyFrom(new int[3])).isInstanceOf(IllegalArgumentException.class)
                    .hasMessage("expected 3 elements of I32, found I32[2]");
        }
    }
}
