package dev.penumbra.data;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;

class SampleRendererTest {

    @Test
    void supervisedTokensStandInBracketsAndSpecialsByNumber() {
        Sample sample = new Sample(
                new int[]{2, 'a', 'b', 'c', 'd', 3, '\n'}, new boolean[]{false, false, false, true, true, true, false});
        assertThat(SampleRenderer.render(sample, JsonlReaderTest.CHARACTERS)).isEqualTo("<2>ab[[cd<3>]]\n");
    }
}
