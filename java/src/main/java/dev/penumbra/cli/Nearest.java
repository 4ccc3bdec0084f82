package dev.penumbra.cli;

import java.util.Collection;
import java.util.Comparator;
import java.util.Optional;

/** Which of the words that there are one stands for that is none: mistyped, or what other programs call it. */
final class Nearest {

    /** A shorter beginning of a word says nothing. */
    private static final int LEAST_PREFIX = 3;

    private Nearest() {
    }

    /**
     * The one that is written most alike, in a few letters; else the one with most letters whose parts are the beginnings of parts
     * of what was given, or its initials: lora-r of lora-rank, grad-accum of gradient-accumulation-steps, lr of learning-rate.
     */
    static Optional<String> of(String given, Collection<String> known) {
        Optional<String> alike = known.stream().filter(word -> 3 * distance(given, word) <= given.length() + 2)
                .min(Comparator.comparingInt((String word) -> distance(given, word)).thenComparing(word -> word));
        return alike.isPresent()
                ? alike
                : known.stream().filter(word -> shared(given, word) > 0)
                        .max(Comparator.comparingInt((String word) -> shared(given, word)).thenComparing(word -> word));
    }

    /** Letters of a word whose parts stand for parts of what was given, one after another; 0: it is another. */
    private static int shared(String given, String word) {
        String[] parts = given.split("-");
        int at = 0;
        int letters = 0;
        for (String part : word.split("-")) {
            while (at < parts.length && !standsFor(part, parts[at])) {
                at++;
            }
            if (at == parts.length) {
                return isInitials(word, parts) ? word.length() : 0;
            }
            letters += Math.min(part.length(), parts[at++].length());
        }
        return letters;
    }

    private static boolean standsFor(String part, String given) {
        return !part.isEmpty() && given.startsWith(part) || given.length() >= LEAST_PREFIX && part.startsWith(given);
    }

    private static boolean isInitials(String word, String[] parts) {
        StringBuilder initials = new StringBuilder();
        for (String part : parts) {
            initials.append(part, 0, Math.min(1, part.length()));
        }
        return word.contentEquals(initials);
    }

    /** Letters to change, leave out or put in. */
    private static int distance(String from, String to) {
        int[] row = new int[to.length() + 1];
        for (int j = 0; j <= to.length(); j++) {
            row[j] = j;
        }
        for (int i = 1; i <= from.length(); i++) {
            int diagonal = row[0];
            row[0] = i;
            for (int j = 1; j <= to.length(); j++) {
                int change = diagonal + (from.charAt(i - 1) == to.charAt(j - 1) ? 0 : 1);
                diagonal = row[j];
                row[j] = Math.min(change, 1 + Math.min(row[j], row[j - 1]));
            }
        }
        return row[to.length()];
    }
}
