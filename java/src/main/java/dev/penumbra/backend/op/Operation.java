package dev.penumbra.backend.op;

/**
 * One operation of the C ABI, as data: a backend runs it, a recording backend keeps it, a profiler names it.
 * Shapes, formulas and {@code =} or {@code +=} are those of the C header with the same name. Optional operands are null.
 */
public sealed interface Operation
        permits ActivationMass,
        AdamW,
        AttentionBackward,
        AttentionForward,
        AttentionMass,
        Convert,
        Embedding,
        Fill,
        Gemm,
        LayerNormBackward,
        LayerNormForward,
        LinearCrossEntropy,
        LoraGradients,
        LoraProject,
        PredictAttention,
        PredictMass,
        RelativeMass,
        SelectAttention,
        SelectBlocks {

    /** Floating-point operations of this call, a multiply-add counted as two; 0 where memory decides the time. */
    default long flops() {
        return 0;
    }
}
