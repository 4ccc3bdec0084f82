package dev.penumbra.lora;

import dev.penumbra.backend.Backend;
import dev.penumbra.internal.Counted;
import dev.penumbra.sparse.NeuronOrder;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Shape;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.SplittableRandom;
import java.util.TreeSet;
import org.jspecify.annotations.Nullable;

/**
 * The matrices A [r, in] and B [out, r] of every adapted layer, in one flat f32 buffer on a backend, so that the optimizer
 * and the norm run over all of them at once. Offsets are rounded up to 64 elements, the gap is zero.
 */
public final class LoraAdapter {

    /** A cache line of floats is 16; 64 keep every matrix on the 256-byte boundary that buffers have. */
    private static final long ALIGNMENT = 64;

    /** One adapted layer and where its matrices lie in a flat buffer; {@code index} counts the sites. */
    public record Site(AdaptableLayer layer, int index, int r, long offsetA, long offsetB) {
        /** View of A [r, in] in a flat buffer: parameters, gradients or moments. */
        public Tensor a(Tensor flat) {
            return flat.slice(0, offsetA, offsetA + (long) r * layer.in()).reshape(r, layer.in());
        }

        /** View of B [out, r] in a flat buffer. */
        public Tensor b(Tensor flat) {
            return flat.slice(0, offsetB, offsetB + (long) layer.out() * r).reshape(layer.out(), r);
        }
    }

    private final LoraConfig config;
    private final Backend backend;
    private final String prefix;
    private final Map<String, Site> sites = new LinkedHashMap<>();
    private final Tensor parameters;

    private LoraAdapter(Backend backend, Arena owner, LoraConfig config, List<AdaptableLayer> layers, String prefix) {
        this.config = config;
        this.backend = backend;
        this.prefix = prefix;
        Set<String> unmatched = new TreeSet<>(config.targetModules());
        long offset = 0;
        for (AdaptableLayer layer : layers) {
            if (config.targetModules().contains(layer.kind())) {
                unmatched.remove(layer.kind());
                long offsetB = offset + round((long) config.r() * layer.in());
                sites.put(layer.name(), new Site(layer, sites.size(), config.r(), offset, offsetB));
                offset = offsetB + round((long) config.r() * layer.out());
            }
        }
        if (!unmatched.isEmpty() || sites.isEmpty()) {
            Set<String> kinds = new TreeSet<>();
            layers.forEach(l -> kinds.add(l.kind()));
            throw new IllegalArgumentException("expected target modules out of " + kinds + ", found "
                    + (sites.isEmpty() && unmatched.isEmpty() ? "none" : unmatched.toString()));
        }
        if (offset > Integer.MAX_VALUE) {
            throw new IllegalArgumentException("expected an adapter of at most " + Integer.MAX_VALUE
                    + " parameters, which one array holds, found " + offset + " of rank " + config.r());
        }
        parameters = backend.allocate(owner, DType.F32, Shape.of(offset));
    }

    private static long round(long count) {
        return Math.ceilDiv(count, ALIGNMENT) * ALIGNMENT;
    }

    /**
     * A new adapter: A drawn from U(−1/√in, 1/√in), which is Kaiming's uniform with a = √5, B zero.
     *
     * @param prefix what PEFT's keys begin with
     * @throws IllegalArgumentException naming targets that match no layer, or a rank that makes it too large
     */
    public static LoraAdapter create(Backend backend, Arena owner, LoraConfig config, List<AdaptableLayer> layers,
            String prefix, long seed) {
        LoraAdapter adapter = new LoraAdapter(backend, owner, config, layers, prefix);
        float[] values = new float[Math.toIntExact(adapter.parameters.shape().size())];
        SplittableRandom random = new SplittableRandom(seed);
        for (Site site : adapter.sites.values()) {
            double bound = 1 / Math.sqrt(site.layer().in());
            int count = site.r() * site.layer().in();
            for (int i = 0; i < count; i++) {
                values[Math.toIntExact(site.offsetA()) + i] = (float) ((2 * random.nextDouble() - 1) * bound);
            }
        }
        adapter.setParameters(values);
        return adapter;
    }

    /**
     * An adapter with given matrices, by PEFT's keys; every key must match and every matrix must be there.
     *
     * @param tensors contiguous host tensors of a float dtype, A [r, in] and B [out, r] of each adapted layer
     * @throws IllegalArgumentException naming a target or key that matches nothing, or a matrix that is missing or has another shape
     */
    public static LoraAdapter of(Backend backend, Arena owner, LoraConfig config, List<AdaptableLayer> layers, String prefix,
            Map<String, Tensor> tensors) {
        LoraAdapter adapter = new LoraAdapter(backend, owner, config, layers, prefix);
        adapter.load(tensors);
        return adapter;
    }

    public LoraConfig config() {
        return config;
    }

    public Backend backend() {
        return backend;
    }

    /** f32 [n]: all matrices. */
    public Tensor parameters() {
        return parameters;
    }

    /** The adapted layers, in the forward pass's order. */
    public List<Site> sites() {
        return new ArrayList<>(sites.values());
    }

    /** The site on a layer, or null: the layer is not adapted. */
    public @Nullable Site site(String layerName) {
        return sites.get(layerName);
    }

    /** Trainable parameters, without the gaps. */
    public long parameterCount() {
        return sites.values().stream().mapToLong(s -> (long) s.r() * (s.layer().in() + s.layer().out())).sum();
    }

    /** Bytes of {@link #parameters}, the gaps among them. */
    public long byteSize() {
        return parameters.byteSize();
    }

    /** The contents of {@link #parameters}; waits for what was enqueued. */
    public float[] parametersToHost() {
        return backend.toFloats(parameters);
    }

    /** Writes {@link #parameters}: as many values as it has elements. */
    public void setParameters(float[] values) {
        try (Arena arena = Arena.ofConfined()) {
            backend.upload(Tensor.of(arena, values), parameters);
        }
    }

    /**
     * A flat buffer (parameters, gradients or moments) on the host, with A's columns and B's rows in the checkpoint's order,
     * however the model's neurons lie in memory.
     */
    public Tensor toHostFlat(Arena owner, Tensor flat) {
        Tensor host = Tensor.allocate(owner, DType.F32, flat.shape());
        backend.download(flat, host);
        reorder(host, true);
        return host;
    }

    /** Takes a flat buffer as {@link #toHostFlat} gives it; {@code host} is changed. */
    public void upload(Tensor host, Tensor flat) {
        reorder(host, false);
        backend.upload(host, flat);
    }

    private void reorder(Tensor host, boolean undo) {
        for (Site site : sites.values()) {
            NeuronOrder in = site.layer().inOrder();
            NeuronOrder out = site.layer().outOrder();
            if (in != null) {
                Tensor a = site.a(host);
                a.copyFrom((undo ? in.inverse() : in).applyToColumns(a.toFloats(), site.r()));
            }
            if (out != null) {
                Tensor b = site.b(host);
                b.copyFrom((undo ? out.inverse() : out).applyToRows(b.toFloats(), site.r()));
            }
        }
    }

    /**
     * The matrices of a flat buffer (parameters or gradients) on the host, by PEFT's keys, in the checkpoint's order; they
     * live as long as {@code owner}.
     */
    public Map<String, Tensor> toHost(Arena owner, Tensor flat) {
        Tensor host = toHostFlat(owner, flat);
        Map<String, Tensor> named = new LinkedHashMap<>();
        for (Site site : sites.values()) {
            named.put(key(site, "A"), site.a(host));
            named.put(key(site, "B"), site.b(host));
        }
        return named;
    }

    public Map<String, Tensor> toHost(Arena owner) {
        return toHost(owner, parameters);
    }

    /**
     * Takes the matrices from host tensors, by PEFT's keys, in the checkpoint's order.
     *
     * @throws IllegalArgumentException naming a key that matches nothing, is missing, or has another shape
     */
    public void load(Map<String, Tensor> tensors) {
        Set<String> unmatched = new HashSet<>(tensors.keySet());
        float[] values = new float[Math.toIntExact(parameters.shape().size())];
        for (Site site : sites.values()) {
            take(tensors, key(site, "A"), Shape.of(site.r(), site.layer().in()), values, site.offsetA());
            take(tensors, key(site, "B"), Shape.of(site.layer().out(), site.r()), values, site.offsetB());
            unmatched.remove(key(site, "A"));
            unmatched.remove(key(site, "B"));
        }
        if (!unmatched.isEmpty()) {
            throw new IllegalArgumentException("expected only keys of adapted layers, found " + new TreeSet<>(unmatched));
        }
        try (Arena arena = Arena.ofConfined()) {
            upload(Tensor.of(arena, values), parameters);
        }
    }

    private static void take(Map<String, Tensor> tensors, String key, Shape shape, float[] values, long offset) {
        Tensor tensor = tensors.get(key);
        if (tensor == null) {
            throw new IllegalArgumentException("expected a tensor \"" + key + "\" in the adapter, found none");
        }
        if (!tensor.shape().equals(shape)) {
            throw new IllegalArgumentException("expected shape " + shape + " for \"" + key + "\", found " + tensor.shape());
        }
        float[] given = tensor.toFloats();
        System.arraycopy(given, 0, values, Math.toIntExact(offset), given.length);
    }

    private String key(Site site, String matrix) {
        return prefix + site.layer().name() + ".lora_" + matrix + ".weight";
    }

    @Override
    public String toString() {
        return "adapter of rank " + config.r() + " on " + Counted.of(sites.size(), "layer") + " ("
                + String.join(", ", config.targetModules())
                + "), " + parameterCount() + " parameters";
    }
}
