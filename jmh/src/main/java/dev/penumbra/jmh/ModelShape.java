package dev.penumbra.jmh;

/** Sizes of OPT models, by the names of their checkpoints. */
public enum ModelShape {
    /** Only to see that a benchmark runs. */
    TINY("opt-tiny", 64, 2, 2, 256, 512), OPT_125M("opt-125m", 768, 12, 12, 3072, 50272), OPT_1_3B("opt-1.3b", 2048, 24, 32,
            8192, 50272), OPT_2_7B("opt-2.7b", 2560, 32, 32, 10240, 50272), OPT_6_7B("opt-6.7b", 4096, 32, 32, 16384, 50272);

    /** Learned positions of every OPT checkpoint. */
    static final int POSITIONS = 2048;

    final String checkpoint;
    final int hiddenSize;
    final int layers;
    final int heads;
    final int ffnDim;
    final int vocabSize;

    ModelShape(String checkpoint, int hiddenSize, int layers, int heads, int ffnDim, int vocabSize) {
        this.checkpoint = checkpoint;
        this.hiddenSize = hiddenSize;
        this.layers = layers;
        this.heads = heads;
        this.ffnDim = ffnDim;
        this.vocabSize = vocabSize;
    }

    /** Positions of a model that takes samples of this many tokens: as a checkpoint's, or extended. */
    static int positions(int seqLen) {
        return Math.max(POSITIONS, seqLen);
    }

    int headDim() {
        return hiddenSize / heads;
    }

    /**
     * Operations of one LoRA step with adapters on q_proj and v_proj and every token supervised, a multiply-add counted as
     * two: forward, and the gradients of activations; the frozen weights have none. The adapters' own are left out.
     *
     * @param samples samples of the batch, each {@code length} tokens
     */
    long stepFlops(long samples, long length) {
        long tokens = samples * length;
        long h = hiddenSize;
        long qkv = 3 * h * h;
        long linear = qkv + h * h + 2 * h * ffnDim;
        // No adapter lies below the first layer's q, k and v: the gradient of their input is not needed.
        long frozen = 2 * tokens * (2 * layers * linear - qkv + 2 * h * vocabSize);
        return frozen + layers * (attentionForwardFlops(samples, length) + attentionBackwardFlops(samples, length));
    }

    /** Two products over the pairs that causal attention sees. */
    long attentionForwardFlops(long samples, long length) {
        return 4 * causalPairs(samples, length) * hiddenSize;
    }

    /** Five products: the scores again, dP, dV, dQ and dK. */
    long attentionBackwardFlops(long samples, long length) {
        return 10 * causalPairs(samples, length) * hiddenSize;
    }

    private static long causalPairs(long samples, long length) {
        return samples * length * (length + 1) / 2;
    }
}
