package dev.penumbra.backend.op;

import dev.penumbra.tensor.Tensor;

/**
 * The seed paper's rule: {@code scores[b]} is the sum of block b's masses, or 0 where at least {@code share} of its neurons lie
 * below {@code threshold} times the block's own largest.
 *
 * @param neuronMass f32 [n]
 * @param scores f32 [1, n / blockSize]: {@code =}
 */
public record RelativeMass(Tensor neuronMass, int blockSize, float threshold, float share, Tensor scores)
        implements
            Operation {
}
