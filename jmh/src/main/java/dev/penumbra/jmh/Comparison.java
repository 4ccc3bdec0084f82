package dev.penumbra.jmh;

import dev.penumbra.backend.Device;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import tools.jackson.databind.node.ArrayNode;
import tools.jackson.databind.node.ObjectNode;

/** Training of one model on one kind of batch by peers and by Penumbra, dense and sparse, in one go. */
final class Comparison {

    /** What training is judged by. */
    enum Unit {
        MS("ms"), TOKENS_PER_SECOND("tokens/s");

        final String label;

        Unit(String label) {
            this.label = label;
        }

        double of(Side side) {
            return this == MS ? side.ms() : side.tokensPerSecond();
        }

        static Unit labelled(String label) {
            return label.equals(MS.label) ? MS : TOKENS_PER_SECOND;
        }

        /** How many times faster {@code one} is than {@code other}; below 1 it is slower. */
        double faster(double one, double other) {
            return this == MS ? other / one : one / other;
        }
    }

    private record Named(String name, Side side) {
    }

    private final String command;
    private final String what;
    private final Unit unit;
    private final List<Named> peers = new ArrayList<>();
    private final List<Named> ours = new ArrayList<>();

    /** @param what the step that all compute */
    Comparison(String command, String what, Unit unit) {
        this.command = command;
        this.what = what;
        this.unit = unit;
    }

    /** Who is beaten, or not. */
    Comparison peer(String name, Side side) {
        peers.add(new Named(name, side));
        return this;
    }

    /** One of Penumbra's; the first is what the others stand beside. */
    Comparison ours(String name, Side side) {
        ours.add(new Named(name, side));
        return this;
    }

    /** With the machine, the versions and the command. */
    ObjectNode report() throws IOException {
        ObjectNode report = Results.report(command, ours.getFirst().side().versions().required("backend").stringValue());
        ObjectNode versions = (ObjectNode) report.required("versions");
        peers.getFirst().side().versions().properties()
                .forEach(version -> versions.set(version.getKey(), version.getValue()));
        report.put("others_share", Results.rounded(othersShare()));
        ObjectNode comparison = report.putObject("comparison");
        comparison.put("what", what);
        comparison.put("unit", unit.label);
        put(comparison.putArray("peers"), peers);
        put(comparison.putArray("penumbra"), ours);
        return report;
    }

    private void put(ArrayNode list, List<Named> sides) {
        for (Named named : sides) {
            list.addObject().put("name", named.name()).put("value", Results.rounded(unit.of(named.side()))).put("peak_mib",
                    named.side().peakMib());
        }
    }

    private double othersShare() {
        double share = 0;
        for (List<Named> sides : List.of(peers, ours)) {
            share = Math.max(share, sides.stream().mapToDouble(named -> named.side().othersShare()).max().orElse(0));
        }
        return share;
    }

    /**
     * Prints the figures, and where {@code record} says so writes {@code results/<name>.json}.
     *
     * @throws IllegalStateException when they are to be recorded and the machine was busy with something else
     */
    void finish(String name, Device.Kind device, boolean record) throws IOException {
        ObjectNode report = report();
        System.out.println(ReadmeTable.comparison(report));
        if (record) {
            OtherWork.requireLittle(othersShare(), device);
            Results.write(name, report);
        }
    }
}
