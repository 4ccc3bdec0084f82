package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;

/** What a run will allocate, by name, before it allocates any of it. */
public final class MemoryPlan {

    public enum Kind {
        WEIGHTS("frozen weights"), ADAPTER("adapters"), OPTIMIZER("gradients and optimizer state"), ACTIVATIONS(
                "activations"), WORKSPACE("workspace"),
        /** In the host's memory, wherever the rest is. */
        HOST("copies on the host");

        private final String label;

        Kind(String label) {
            this.label = label;
        }
    }

    /**
     * @param bytes bytes it takes
     * @param resident whether it is allocated already
     */
    public record Entry(Kind kind, String name, long bytes, boolean resident) {
    }

    private static final String DEVICE_ADVICE = "; a smaller batch size or sequence length lowers the activations";
    private static final String HOST_ADVICE = "; fewer offloaded layers keep more of the activations on the device";

    private final List<Entry> entries = new ArrayList<>();
    private long parameters;

    public void add(Kind kind, String name, long bytes) {
        entries.add(new Entry(kind, name, bytes, false));
    }

    public void addResident(Kind kind, String name, long bytes) {
        entries.add(new Entry(kind, name, bytes, true));
    }

    /** @param parameters of the checkpoint that it holds; 0: they are another entry's too */
    public void addWeight(String name, long bytes, long parameters, boolean resident) {
        entries.add(new Entry(Kind.WEIGHTS, name, bytes, resident));
        this.parameters += parameters;
    }

    public List<Entry> entries() {
        return List.copyOf(entries);
    }

    public long totalBytes() {
        return entries.stream().mapToLong(Entry::bytes).sum();
    }

    /** Bytes still to be allocated. */
    public long missingBytes() {
        return entries.stream().filter(e -> !e.resident()).mapToLong(Entry::bytes).sum();
    }

    private long missingBytes(Kind kind) {
        return entries.stream().filter(e -> !e.resident() && e.kind() == kind).mapToLong(Entry::bytes).sum();
    }

    /** Bytes on the backend's device. */
    public long deviceBytes() {
        return totalBytes() - bytes(Kind.HOST);
    }

    public long bytes(Kind kind) {
        return entries.stream().filter(e -> e.kind() == kind).mapToLong(Entry::bytes).sum();
    }

    /**
     * Refuses a plan that does not fit into what {@code backend} and its host have free. Does nothing where that is not known.
     *
     * @throws ModelException with the numbers
     */
    public void requireFits(Backend backend) {
        if (backend.device().isHost()) {
            backend.freeBytes().ifPresent(this::requireFits);
        } else {
            long onHost = missingBytes(Kind.HOST);
            backend.freeBytes().ifPresent(free -> requireFits("", missingBytes() - onHost, free, DEVICE_ADVICE));
            backend.hostFreeBytes().ifPresent(free -> requireFits(" on the host", onHost, free, HOST_ADVICE));
        }
    }

    /** @throws ModelException with the numbers when more is missing than {@code freeBytes} */
    public void requireFits(long freeBytes) {
        requireFits("", missingBytes(), freeBytes, DEVICE_ADVICE);
    }

    private void requireFits(String where, long neededBytes, long freeBytes, String advice) {
        if (neededBytes > freeBytes) {
            throw new ModelException(
                    "not enough memory" + where + ": expected " + mib(neededBytes) + " to be free, found " + mib(freeBytes)
                            + " (of " + mib(totalBytes()) + ": "
                            + sums().entrySet().stream().map(sum -> sum.getKey().label + " " + mib(sum.getValue()))
                                    .collect(Collectors.joining(", "))
                            + ")"
                            + (bytes(Kind.ACTIVATIONS) > 0 ? advice : ""));
        }
    }

    /** One line a kind, and the sum; the weights' line tells the bytes that a parameter of the checkpoint takes. */
    public String table() {
        StringBuilder text = new StringBuilder();
        sums().forEach((kind, bytes) -> text.append(line(kind.label, bytes)).append(kind != Kind.WEIGHTS || parameters == 0
                ? ""
                : String.format(Locale.ROOT, "  %.2f bytes a parameter", (double) bytes / parameters)).append('\n'));
        return text.append(line("sum", totalBytes())).append('\n').toString();
    }

    private Map<Kind, Long> sums() {
        Map<Kind, Long> sums = new EnumMap<>(Kind.class);
        entries.forEach(e -> sums.merge(e.kind(), e.bytes(), Long::sum));
        return sums;
    }

    private static String line(String label, long bytes) {
        return String.format(Locale.ROOT, "  %-30s %14s", label, mib(bytes));
    }

    /** One line an entry. */
    public String details() {
        StringBuilder text = new StringBuilder();
        for (Entry e : entries) {
            text.append(String.format(Locale.ROOT, "  %-44s %14d bytes  %s%n", e.name(), e.bytes(), e.kind().label));
        }
        return text.toString();
    }

    @Override
    public String toString() {
        return table();
    }

    private static String mib(long bytes) {
        return String.format(Locale.ROOT, "%.1f MiB", bytes / 1048576.0);
    }
}
