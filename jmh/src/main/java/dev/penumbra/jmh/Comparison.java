package dev.penumbra.jmh;

import dev.penumbra.backend.Device;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/** Figures of Penumbra beside those of a peer, measured one after the other in one run. */
final class Comparison {

    private record Figure(String what, String unit, double penumbra, double peer, boolean moreIsBetter) {
        /** How many times better Penumbra is; below 1 it is worse. */
        double factor() {
            return moreIsBetter ? penumbra / peer : peer / penumbra;
        }
    }

    private double othersShare;
    private final ObjectNode report;
    private final List<Figure> figures = new ArrayList<>();

    /**
     * @param peers the peer's runs, one or more
     * @see #with
     */
    Comparison(String command, Side penumbra, Side... peers) throws IOException {
        with(penumbra);
        Stream.of(peers).forEach(this::with);
        report = Results.report(command, penumbra.versions().required("backend").stringValue());
        ObjectNode versions = (ObjectNode) report.required("versions");
        peers[0].versions().properties().forEach(version -> versions.set(version.getKey(), version.getValue()));
    }

    /** A further run that figures come from. */
    Comparison with(Side side) {
        othersShare = Math.max(othersShare, side.othersShare());
        return this;
    }

    Comparison lessIsBetter(String what, String unit, double penumbra, double peer) {
        figures.add(new Figure(what, unit, penumbra, peer, false));
        return this;
    }

    Comparison moreIsBetter(String what, String unit, double penumbra, double peer) {
        figures.add(new Figure(what, unit, penumbra, peer, true));
        return this;
    }

    /** Prints the figures. */
    Comparison print() {
        for (Figure f : figures) {
            System.out.printf(Locale.ROOT, "%-78s Penumbra %8.1f  PEFT %8.1f %-8s %.2fx%n", f.what(), f.penumbra(), f.peer(),
                    f.unit(), f.factor());
        }
        return this;
    }

    /**
     * Writes {@code results/<name>.json}.
     *
     * @throws IllegalStateException when the machine was busy with something else
     */
    void record(String name, Device.Kind device) throws IOException {
        OtherWork.requireLittle(othersShare, device);
        report.put("others_share", Results.rounded(othersShare));
        ArrayNode list = report.putArray("comparisons");
        for (Figure f : figures) {
            ObjectNode node = list.addObject();
            node.put("what", f.what());
            node.put("unit", f.unit());
            node.put("penumbra", f.penumbra());
            node.put("peer", f.peer());
            node.put("factor", Results.rounded(f.factor()));
        }
        Results.write(name, report);
    }
}
