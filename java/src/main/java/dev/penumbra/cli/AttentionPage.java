package dev.penumbra.cli;

import dev.penumbra.data.Dataset;
import dev.penumbra.expose.AttentionCalibration;
import dev.penumbra.expose.AttentionLook;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.model.LanguageModel;
import dev.penumbra.predict.AttentionConfig;
import dev.penumbra.sparse.BlockDrawing;
import dev.penumbra.sparse.BlockDrawing.Row;
import dev.penumbra.sparse.BlockMask;
import dev.penumbra.sparse.BlockPattern;
import dev.penumbra.sparse.PatternPool;
import java.util.List;
import java.util.Locale;
import java.util.stream.Stream;

/** Pictures of which blocks a sample's heads attend to, and a page of them that needs nothing beside itself. */
final class AttentionPage {

    private AttentionPage() {
    }

    /** A page on one sample: every layer, and the pool's patterns. */
    static String html(String title, String about, List<AttentionLook> looks, PatternPool pool) {
        StringBuilder layers = new StringBuilder();
        looks.forEach(look -> layers.append(figure(look)));
        return """
                <!doctype html><html lang="en"><head><meta charset="utf-8"><title>%1$s</title>
                <meta name="viewport" content="width=device-width, initial-scale=1"><style>
                :root { color-scheme: light dark; --line: #2563eb; --text: #18181b; --page: #ffffff }
                @media (prefers-color-scheme: dark) { :root { --line: #60a5fa; --text: #e4e4e7; --page: #18181b } }
                body { font: 16px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: var(--text); background: var(--page) }
                svg { width: 100%%; height: auto } h2 { font-size: 1.1rem; margin: 1.5rem 0 .25rem } p { margin: 0 0 .5rem }
                </style></head><body><h1>%1$s</h1>
                <p>%2$s</p>
                <p>Blocks of queries go downwards, blocks of keys to the right; a head's number stands above it. Masses are darker the
                larger, the always kept blocks aside.</p>
                %3$s<h2>Pattern pool, version %4$d</h2>
                %5$s</body></html>
                """
                .formatted(Report.escape(title), Report.escape(about), layers, pool.version(), patterns(pool));
    }

    /** What a training run's report shows of the adapter that it made: the first, the middle and the last layer. */
    static String afterTraining(LanguageModel model, LoraAdapter adapter, AttentionCalibration known, Dataset samples,
            AttentionConfig asked) {
        int index = longest(samples, known);
        if (samples.get(index).length() <= known.blockSize()) {
            return "";
        }
        List<AttentionLook> looks = AttentionLook.at(model, adapter, known, samples.get(index), asked.coverage(),
                asked.budget());
        StringBuilder figures = new StringBuilder("<p>The tuned model's attention over ")
                .append(Report.escape(samples.describe(index)))
                .append(": blocks of queries downwards, blocks of keys to the right, a picture a head.</p>\n");
        Stream.of(0, looks.size() / 2, looks.size() - 1).distinct().forEach(i -> figures.append(figure(looks.get(i))));
        return figures.toString();
    }

    /** The first of the longest samples that are no longer than the calibration knows. */
    static int longest(Dataset dataset, AttentionCalibration known) {
        int best = 0;
        int length = 0;
        for (int i = 0; i < dataset.size(); i++) {
            int of = dataset.get(i).length();
            if (of > length && of <= known.width() * known.blockSize()) {
                best = i;
                length = of;
            }
        }
        return best;
    }

    /** One layer with its figures; a part of a page. */
    static String figure(AttentionLook look) {
        String kept = String.format(Locale.ROOT,
                "%s keeps %.1f%% of the blocks on and below the diagonal and %.1f%% of the mass; the best choice of as many holds %.1f%%",
                look.isPredicted() ? "The predictor" : "The mean over sample text", 100 * look.chosen().keptPart(),
                100 * look.chosenMass(), 100 * look.trueMass());
        return "<h2>Layer " + look.layer() + "</h2>\n<p>" + kept + ".</p>\n"
                + BlockDrawing.svg("Attention blocks of layer " + look.layer(), List.of(),
                        List.of(new Row(look.isPredicted() ? "predicted" : "static", look.chosen()),
                                new Row("true", look.truth()), new Row("mass", look.truth(), look.mass()),
                                new Row("patterns", look.layouts())));
    }

    private static String patterns(PatternPool pool) {
        List<BlockPattern> patterns = pool.patterns();
        return BlockDrawing.svg("The pool's patterns", patterns.stream().map(BlockPattern::name).toList(),
                List.of(new Row("",
                        BlockMask.of(patterns.size(), pool.width(), (pattern, i, j) -> patterns.get(pattern).keeps(i, j)))));
    }
}
