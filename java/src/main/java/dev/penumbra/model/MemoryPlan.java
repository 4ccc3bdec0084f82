package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.OptionalLong;

/** What a run will allocate, by name, before it allocates any of it. */
public final class MemoryPlan {

    public enum Kind {
        WEIGHTS("frozen weights"), ADAPTER("adapters"), OPTIMIZER("gradients and optimizer state"), ACTIVATIONS(
                "activations"), WORKSPACE("workspace");

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

    private final List<Entry> entries = new ArrayList<>();

    public void add(Kind kind, String name, long bytes) {
        entries.add(new Entry(kind, name, bytes, false));
    }

    public void addResident(Kind kind, String name, long bytes) {
        entries.add(new Entry(kind, name, bytes, true));
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

    public long bytes(Kind kind) {
        return entries.stream().filter(e -> e.kind() == kind).mapToLong(Entry::bytes).sum();
    }

    /** Refuses a plan that does not fit into what {@code backend} has free. Does nothing where that is not known. */
    public void requireFits(Backend backend) {
        OptionalLong free = backend.freeBytes();
        if (free.isPresent()) {
            requireFits(free.getAsLong());
        }
    }

    /** @throws ModelException with the numbers when more is missing than {@code freeBytes} */
    public void requireFits(long freeBytes) {
        if (missingBytes() > freeBytes) {
            throw new ModelException(
                    "not enough memory: expected " + mib(missingBytes()) + " to be free, found " + mib(freeBytes) + "\n"
                            + table() + "a smaller batch size or sequence length lowers the activations");
        }
    }

    /** One line a kind, and the sum. */
    public String table() {
        Map<Kind, Long> sums = new EnumMap<>(Kind.class);
        entries.forEach(e -> sums.merge(e.kind(), e.bytes(), Long::sum));
        StringBuilder text = new StringBuilder();
        sums.forEach((kind, bytes) -> text.append(String.format(Locale.ROOT, "  %-30s %14s%n", kind.label, mib(bytes))));
        text.append(String.format(Locale.ROOT, "  %-30s %14s%n", "sum", mib(totalBytes())));
        return text.toString();
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
