package dev.penumbra.backend.op;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.tensor.Tensor;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * d = epilogue(a · B + low-rank terms + bias) + residual, accumulated in f32.
 *
 * <p>With {@code blocks} only the listed rows (neurons) of {@code weight} are used: FORWARD gives a compact d [m, width] (SDD),
 * where bias and terms stay as wide as they are without; BACKWARD takes a compact a [m, width] (DSD).
 *
 * @param a [m, k], any strides
 * @param b B = b [k, n], any strides; null when {@code weight} is given
 * @param weight B = Wᵀ (FORWARD) or W (BACKWARD); null when {@code b} is given
 * @param use which product of {@code weight}; FORWARD with {@code b}
 * @param lowRank at most 4 terms
 * @param bias f32 [n]
 * @param epilogue applied before the residual is added
 * @param reluMask u8 [m, ceil(n/8)]: written by RELU when present, read by DRELU; of a compact d by neuron [m, neurons/8], or,
 *     where that is less, by d's columns [m, width/8]
 * @param residual [m, n]; may be {@code d} itself, which makes it {@code +=}
 * @param d [m, n], rows contiguous
 * @param blocks of {@code weight}'s rows; null: all
 */
public record Gemm(
        Tensor a,
        @Nullable Tensor b,
        @Nullable FrozenWeight weight,
        FrozenWeight.Use use,
        List<LowRank> lowRank,
        @Nullable Tensor bias,
        Epilogue epilogue,
        @Nullable Tensor reluMask,
        @Nullable Tensor residual,
        Tensor d,
        @Nullable BlockList blocks,
        @Nullable Tensor workspace)
        implements
            Operation {

    public enum Epilogue {
        NONE, RELU, DRELU
    }

    public Gemm {
        if ((b == null) == (weight == null)) {
            throw new IllegalArgumentException("expected either a second matrix or a packed weight");
        }
        if (epilogue == Epilogue.DRELU && reluMask == null) {
            throw new IllegalArgumentException("expected a mask: DRELU reads one");
        }
        if (blocks != null && weight == null) {
            throw new IllegalArgumentException("expected blocks of a packed weight, found them with a second matrix");
        }
        lowRank = List.copyOf(lowRank);
    }

    @Override
    public long flops() {
        return 2 * a.shape().dim(0) * a.shape().dim(1) * d.shape().dim(1);
    }

    /** d = a · Wᵀ; add to it with the methods of {@link Builder}. */
    public static Builder forward(Tensor a, FrozenWeight weight, Tensor d) {
        return new Builder(a, null, weight, FrozenWeight.Use.FORWARD, d);
    }

    /** d = a · W. */
    public static Builder backward(Tensor a, FrozenWeight weight, Tensor d) {
        return new Builder(a, null, weight, FrozenWeight.Use.BACKWARD, d);
    }

    /** d = a · b. */
    public static Builder product(Tensor a, Tensor b, Tensor d) {
        return new Builder(a, b, null, FrozenWeight.Use.FORWARD, d);
    }

    /** Collects the optional operands. */
    public static final class Builder {
        private final Tensor a;
        private final @Nullable Tensor b;
        private final @Nullable FrozenWeight weight;
        private final FrozenWeight.Use use;
        private final Tensor d;
        private List<LowRank> lowRank = List.of();
        private @Nullable Tensor bias;
        private Epilogue epilogue = Epilogue.NONE;
        private @Nullable Tensor reluMask;
        private @Nullable Tensor residual;
        private @Nullable BlockList blocks;
        private @Nullable Tensor workspace;

        private Builder(Tensor a, @Nullable Tensor b, @Nullable FrozenWeight weight, FrozenWeight.Use use, Tensor d) {
            this.a = a;
            this.b = b;
            this.weight = weight;
            this.use = use;
            this.d = d;
        }

        public Builder lowRank(List<LowRank> terms) {
            lowRank = terms;
            return this;
        }

        public Builder bias(@Nullable Tensor values) {
            bias = values;
            return this;
        }

        /** max(0, ·); where {@code mask} is not null, it is written. */
        public Builder relu(@Nullable Tensor mask) {
            epilogue = Epilogue.RELU;
            reluMask = mask;
            return this;
        }

        /** ReLU's backward: keeps what {@code mask} has set. */
        public Builder drelu(Tensor mask) {
            epilogue = Epilogue.DRELU;
            reluMask = mask;
            return this;
        }

        public Builder residual(@Nullable Tensor values) {
            residual = values;
            return this;
        }

        /** Only these of the weight's rows; null: all. */
        public Builder blocks(@Nullable BlockList list) {
            blocks = list;
            return this;
        }

        public Builder workspace(@Nullable Tensor bytes) {
            workspace = bytes;
            return this;
        }

        public Gemm build() {
            return new Gemm(a, b, weight, use, lowRank, bias, epilogue, reluMask, residual, d, blocks, workspace);
        }
    }
}
