package dev.penumbra.model;

import dev.penumbra.backend.Backend;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Dropout;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.lora.LoraAdapter;
import dev.penumbra.lora.LoraAdapter.Site;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What an adapter adds to the products of a pass, and its gradients. Adapters over the same input lie side by side in a
 * product's columns and are computed in one pass over the input.
 */
final class AdapterTerms {

    static final List<String> QKV = List.of("q_proj", "k_proj", "v_proj");
    static final List<String> OUT = List.of("out_proj");
    static final List<String> FC1 = List.of("fc1");
    static final List<String> FC2 = List.of("fc2");

    private final Backend backend;
    private final Buffers buffers;
    private final @Nullable LoraAdapter adapter;
    /** Seed and offset, which a batch brings to the device. */
    private final Tensor dropoutState;
    private final Tensor stagedDropout;
    private final List<Tensor> dh = new ArrayList<>();
    private boolean dropping;

    /** @param capacity rows of the largest batch */
    AdapterTerms(Backend backend, Buffers buffers, @Nullable LoraAdapter adapter, int capacity, boolean training) {
        this.backend = backend;
        this.buffers = buffers;
        this.adapter = adapter;
        dropoutState = buffers.activations("dropout state", DType.U64, 2);
        stagedDropout = buffers.stage("staged dropout state", DType.U64, 2);
        if (training) {
            for (int i = 0; i < QKV.size(); i++) {
                dh.add(buffers.activations("dh " + i, DType.F32, capacity, adapter.config().r()));
            }
        }
    }

    /** Begins a batch: dropout is drawn from {@code seed}, where the adapter has some; null: none is. */
    void load(ModelPass.@Nullable DropoutSeed seed) {
        dropping = seed != null && adapter != null && adapter.config().loraDropout() > 0;
        if (dropping) {
            stagedDropout.segment().set(ValueLayout.JAVA_LONG, 0, seed.seed());
            stagedDropout.segment().set(ValueLayout.JAVA_LONG, Long.BYTES, seed.offset());
            backend.upload(stagedDropout, dropoutState);
        }
    }

    /** As {@link #load}, of a batch with dropout, where the adapter has some, or without: for plans. */
    void describe(boolean dropout) {
        dropping = dropout && adapter != null && adapter.config().loraDropout() > 0;
    }

    /** Whether the batch is computed with dropout. */
    boolean isDropping() {
        return dropping;
    }

    boolean has(int layer, List<String> kinds) {
        return kinds.stream().anyMatch(kind -> site(layer, kind) != null);
    }

    private @Nullable Site site(int layer, String kind) {
        return site(adapter, layer, kind);
    }

    /** Where an adapter sits on a linear layer; null: it does not. */
    static @Nullable Site site(@Nullable LoraAdapter adapter, int layer, String kind) {
        String at = kind.startsWith("fc") ? "layers." + layer + "." : "layers." + layer + ".self_attn.";
        return adapter == null ? null : adapter.site(at + kind);
    }

    private List<Site> sites(int layer, List<String> kinds) {
        List<Site> sites = new ArrayList<>();
        for (String kind : kinds) {
            Site site = site(layer, kind);
            if (site != null) {
                sites.add(site);
            }
        }
        return sites;
    }

    /**
     * Projects an input and returns what that adds to the product over it.
     *
     * @param h where the projections go, by kind, over the whole batch
     * @param blocks of {@code in}, where it is compact
     */
    List<LowRank> project(int layer, List<String> kinds, Tensor in, Map<String, Tensor> h, Band band,
            @Nullable BlockList blocks) {
        LoraProject projection = projection(layer, kinds, in, h, band, blocks);
        if (projection != null) {
            buffers.run(projection);
        }
        return projected(layer, kinds, h, band);
    }

    /** As {@link #project}, for somebody else to run; null where there is no adapter. */
    @Nullable
    LoraProject projection(int layer, List<String> kinds, Tensor in, Map<String, Tensor> h, Band band,
            @Nullable BlockList blocks) {
        LoraProject chain = null;
        for (Site site : sites(layer, kinds).reversed()) {
            chain = new LoraProject(in, site.a(adapter.parameters()), dropout(site, band),
                    band.of(h.get(site.layer().kind())), blocks, chain);
        }
        return chain;
    }

    /** What the projections that are there already add to the product over their input. */
    List<LowRank> projected(int layer, List<String> kinds, Map<String, Tensor> h, Band band) {
        List<LowRank> terms = new ArrayList<>();
        for (Site site : sites(layer, kinds)) {
            terms.add(new LowRank(band.of(h.get(site.layer().kind())), site.b(adapter.parameters()), column(site, kinds),
                    (float) adapter.config().scaling(), null));
        }
        return terms;
    }

    /**
     * grad += the adapters' gradients; returns what they add to the gradient of their input.
     *
     * @param dy gradient of the product, whose columns the adapters share
     * @param inBlocks of {@code in}, where it is compact
     * @param dyBlocks of {@code dy}, where it is compact
     */
    List<LowRank> gradients(int layer, List<String> kinds, Tensor dy, AdapterInput in, Map<String, Tensor> h, Band band,
            Tensor grad,
            @Nullable BlockList inBlocks, @Nullable BlockList dyBlocks) {
        List<Site> sites = sites(layer, kinds);
        LoraGradients chain = null;
        List<LowRank> terms = new ArrayList<>();
        for (int k = sites.size() - 1; k >= 0; k--) {
            Site site = sites.get(k);
            Tensor a = site.a(adapter.parameters());
            Tensor dhOfSite = band.of(dh.get(k));
            long column = column(site, kinds);
            Tensor dyOfSite = kinds.size() == 1 ? dy : dy.slice(1, column, column + site.layer().out());
            chain = new LoraGradients((float) adapter.config().scaling(), dyOfSite, in.x(),
                    band.of(h.get(site.layer().kind())), a, site.b(adapter.parameters()), dropout(site, band), in.norm(),
                    dhOfSite, site.a(grad), site.b(grad), inBlocks, dyBlocks, chain, buffers.workspace());
            terms.addFirst(new LowRank(dhOfSite, a.transpose(), 0, 1, dropout(site, band)));
        }
        if (chain != null) {
            buffers.run(chain);
        }
        return terms;
    }

    private static long column(Site site, List<String> kinds) {
        return (long) kinds.indexOf(site.layer().kind()) * site.layer().out();
    }

    /** Elements are counted from a band's first row: each band draws from a stream of its own. */
    private @Nullable Dropout dropout(Site site, Band band) {
        return dropping
                ? new Dropout((float) adapter.config().loraDropout(), site.index() + band.index() * adapter.sites().size(),
                        dropoutState)
                : null;
    }
}
