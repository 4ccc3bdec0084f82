package dev.penumbra.data;

import java.util.Arrays;

/** A sample as text for people: what is supervised stands between {@code [[} and {@code ]]}, special tokens by their number. */
public final class SampleRenderer {

    private SampleRenderer() {
    }

    public static String render(Sample sample, Tokenizer tokenizer) {
        StringBuilder text = new StringBuilder();
        int[] ids = sample.ids();
        int from = 0;
        boolean marked = false;
        while (from < ids.length) {
            if (sample.supervised()[from] != marked) {
                marked = !marked;
                text.append(marked ? "[[" : "]]");
            }
            if (special(ids[from], tokenizer)) {
                text.append('<').append(ids[from++]).append('>');
                continue;
            }
            // A character may span tokens, so that a whole run is decoded at once.
            int to = from;
            while (to < ids.length && sample.supervised()[to] == marked && !special(ids[to], tokenizer)) {
                to++;
            }
            text.append(tokenizer.decode(Arrays.copyOfRange(ids, from, to)));
            from = to;
        }
        return text.append(marked ? "]]" : "").toString();
    }

    private static boolean special(int id, Tokenizer tokenizer) {
        return id == tokenizer.bosId() || id == tokenizer.eosId() || id == tokenizer.padId();
    }
}
