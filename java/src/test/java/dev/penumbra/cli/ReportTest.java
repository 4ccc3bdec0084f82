package dev.penumbra.cli;

import static org.assertj.core.api.Assertions.assertThat;

import dev.penumbra.train.StepMetrics;
import dev.penumbra.train.StepSparsity;
import java.io.StringReader;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.w3c.dom.Document;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;
import org.xml.sax.InputSource;

class ReportTest {

    private static StepMetrics step(int step, double loss) {
        return new StepMetrics(step, loss, 1e-3, 1, 100, 200, 500);
    }

    private static Document svg(String page) throws Exception {
        String svg = page.substring(page.indexOf("<svg"), page.indexOf("</svg>") + 6);
        return DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(new InputSource(new StringReader(svg)));
    }

    private static List<String> texts(Document svg) {
        NodeList nodes = svg.getElementsByTagName("text");
        return IntStream.range(0, nodes.getLength()).mapToObj(i -> nodes.item(i).getTextContent()).toList();
    }

    @Test
    void theCurveHasAPointForEveryStepWithinItsFrame() throws Exception {
        List<StepMetrics> steps = new ArrayList<>();
        for (int i = 1; i <= 7; i++) {
            steps.add(step(i, 3.5 / i));
        }
        Document svg = svg(Report.html("A run", steps, Map.of()));
        String[] points = ((Element) svg.getElementsByTagName("polyline").item(0)).getAttribute("points").split(" ");
        assertThat(points).hasSize(7);
        double before = 0;
        double above = 0;
        for (String point : points) {
            double x = Double.parseDouble(point.split(",")[0]);
            double y = Double.parseDouble(point.split(",")[1]);
            assertThat(x).isGreaterThan(before).isBetween(56.0, 710.0);
            assertThat(y).isGreaterThan(above).isBetween(24.0, 260.0);
            before = x;
            above = y;
        }
        assertThat(texts(svg)).contains("0", "1", "2", "3", "4", "6", "step", "loss");
    }

    private static StepMetrics sparse(int step, Double... kept) {
        List<Double> ones = Stream.of(kept).map(k -> 1.0).toList();
        return new StepMetrics(step, 1, 1e-3, 1, 100, 200, 500, new StepSparsity(List.of(kept), ones, ones, List.of()));
    }

    @Test
    void theMapHasARowForEveryLayerAndAShadeForWhatItKept() throws Exception {
        List<StepMetrics> steps = List.of(step(1, 2), sparse(2, 0.25, 1.0), sparse(3, 0.25, 0.5), sparse(4, 0.5, 0.5));
        Document svg = svg(Report.html("A run", steps, Map.of()).replaceFirst("(?s)<svg.*?</svg>", ""));
        NodeList cells = svg.getElementsByTagName("rect");
        List<String> shades = IntStream.range(0, cells.getLength())
                .mapToObj(i -> ((Element) cells.item(i)).getAttribute("y") + ":"
                        + ((Element) cells.item(i)).getAttribute("fill-opacity"))
                .toList();
        // A dense step keeps all; neighbours of one shade are one.
        assertThat(shades).containsExactly("24:1.000", "24:0.250", "24:0.500", "40:1.000", "40:0.500");
        assertThat(texts(svg)).contains("layer", "0", "1", "4");
        assertThat(Report.html("A run", List.of(step(1, 1)), Map.of())).doesNotContain("<rect");
    }

    @Test
    void attentionHasAMapOfItsOwnAndTheTableTellsTheSettings() throws Exception {
        StepSparsity kept = new StepSparsity(List.of(0.5, 1.0), List.of(1.0, 1.0), List.of(0.0, 0.0), List.of());
        List<StepMetrics> steps = List.of(step(1, 2), new StepMetrics(2, 1, 1e-3, 1, 100, 200, 500, null, kept));
        String page = Report.html("A run", steps, Map.of("Attention sparsity", "oracle pass=both"));
        Document svg = svg(page.replaceFirst("(?s)<svg.*?</svg>", ""));
        assertThat(svg.getDocumentElement().getAttribute("aria-label"))
                .isEqualTo("Kept part of the attention blocks by layer and step");
        assertThat(page).contains("24\" width=\"327.0\" height=\"15\" fill-opacity=\"0.500\"", "oracle pass=both",
                "more blocks of the layer's attention").doesNotContain("Kept part of the MLP");
        StepMetrics both = new StepMetrics(2, 1, 1e-3, 1, 100, 200, 500, kept, kept);
        assertThat(Report.html("A run", List.of(both), Map.of())).containsSubsequence("Kept part of the MLP blocks",
                "Kept part of the attention blocks");
    }

    @Test
    void aLongRunOfManyLayersIsDrawnInFewRectangles() {
        Random random = new Random(3);
        List<StepMetrics> steps = IntStream.rangeClosed(1, 5000)
                .mapToObj(i -> sparse(i, random.doubles(48).boxed().toArray(Double[]::new))).toList();
        String page = Report.html("A run", steps, Map.of());
        assertThat(page.split("<rect").length - 1).isBetween(48, 48 * 120);
        assertThat(page).hasSizeLessThan(1_000_000);
    }

    @Test
    void aPageStandsAloneInLightAndDark() {
        String page = Report.html("A run", List.of(step(1, 1)), Map.of());
        assertThat(page).contains("prefers-color-scheme: dark").doesNotContain("http").doesNotContain("src=")
                .doesNotContain("%%").doesNotContain("$s");
    }

    @Test
    void whatTheModelWroteCannotBecomeMarkup() {
        Map<String, String> facts = new LinkedHashMap<>();
        facts.put("After", "<script>alert(\"x\") & more</script>");
        String page = Report.html("A <run>", List.of(), facts);
        assertThat(page).contains("&lt;script&gt;alert(&quot;x&quot;) &amp; more&lt;/script&gt;", "<h1>A &lt;run&gt;</h1>")
                .doesNotContain("<script");
    }

    @Test
    void noStepsAndASingleOneAreDrawnToo() {
        assertThat(Stream.of(List.<StepMetrics>of(), List.of(step(1, 0)))
                .map(steps -> Report.html("A run", steps, Map.of())))
                .allSatisfy(page -> assertThat(page).doesNotContain("NaN").doesNotContain("Infinity"));
    }

    @ParameterizedTest
    @CsvSource({"3.59, 1", "0.42, 0.1", "264, 50", "1000, 200", "7, 2", "1e-6, 2e-7"})
    void ticksAreRoundAndFew(double range, double expected) {
        assertThat(Report.tick(range)).isCloseTo(expected, org.assertj.core.data.Percentage.withPercentage(1e-6));
    }
}
