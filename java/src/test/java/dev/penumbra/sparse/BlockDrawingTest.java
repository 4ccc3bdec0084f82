package dev.penumbra.sparse;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.StringReader;
import java.util.List;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.api.Test;
import org.w3c.dom.Document;
import org.xml.sax.InputSource;

class BlockDrawingTest {

    private static Document parsed(String svg) throws Exception {
        return DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(new InputSource(new StringReader(svg)));
    }

    @ParameterizedTest
    @CsvSource({"1, 1", "12, 16", "32, 7"})
    void headsStandSideBySideWithTheTrueOnesBelow(int heads, int blocks) throws Exception {
        BlockMask mask = BlockMask.of(heads, blocks, (head, i, j) -> i == j || j == 0);
        Document document = parsed(mask.svg("layer <3> & \"more\"", mask));
        assertThat(document.getDocumentElement().getAttribute("aria-label")).isEqualTo("layer <3> & \"more\"");
        assertThat(document.getElementsByTagName("g").getLength()).isEqualTo(2 * heads);
    }

    @Test
    void neighboursAreOneRectangle() throws Exception {
        BlockMask mask = BlockMask.of(1, 3, (head, i, j) -> i == 2 || j == 0);
        Document document = parsed(mask.svg("three blocks"));
        String kept = document.getElementsByTagName("path").item(1).getAttributes().getNamedItem("d").getNodeValue();
        assertThat(kept).isEqualTo("M0 0h1v1h-1zM0 1h1v1h-1zM0 2h3v1h-3z");
    }

    @Test
    void massesAreShaded() throws Exception {
        BlockMask mask = BlockMask.of(1, 4, (head, i, j) -> true);
        float[] mass = new float[16];
        mass[2 * 4 + 1] = 1;
        mass[3 * 4 + 1] = 0.25f;
        Document document = parsed(
                BlockDrawing.svg("masses", List.of("head 7"), List.of(new BlockDrawing.Row("mass", mask, mass))));
        // The faint triangle, the half shade and the full one.
        assertThat(document.getElementsByTagName("path").getLength()).isEqualTo(3);
        assertThat(document.getElementsByTagName("text").item(0).getTextContent()).isEqualTo("head 7");
    }

    @Test
    void rowsOfOtherHeadsAreRefused() {
        BlockMask one = BlockMask.of(1, 2, (head, i, j) -> true);
        BlockMask two = BlockMask.of(2, 2, (head, i, j) -> true);
        assertThatThrownBy(() -> one.svg("", two)).isInstanceOf(IllegalArgumentException.class)
                .hasMessageContaining("expected masks of 1 heads in each row");
    }
}
