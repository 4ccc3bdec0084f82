package dev.penumbra.backend;

import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.Optional;

/** A frozen weight W [out, in], packed once for the products that use it. Lives as long as the arena it was packed into. */
public interface FrozenWeight {

    Form form();

    /**
     * W [out, in] itself, rows contiguous, where the packed form holds it as such: an embedding tied to the head need not be
     * held twice.
     */
    default Optional<Tensor> rows() {
        return Optional.empty();
    }

    /** Which product a weight is used in. */
    enum Use {
        /** x[m, in] · Wᵀ → [m, out]. */
        FORWARD,
        /** dy[m, out] · W → [m, in]. */
        BACKWARD
    }

    /**
     * @param out rows of W, over all parts
     * @param in columns of W
     * @param dtype what products are computed in: F32 or BF16
     * @param backward whether W is packed for {@link Use#BACKWARD} beside {@link Use#FORWARD}
     */
    record Form(long out, long in, DType dtype, boolean backward) {
        public Form {
            if (out <= 0 || in <= 0) {
                throw new IllegalArgumentException(
                        "expected a weight with rows and columns, found [" + out + ", " + in + "]");
            }
            if (dtype != DType.F32 && dtype != DType.BF16) {
                throw new IllegalArgumentException("expected F32 or BF16 to compute in, found " + dtype);
            }
        }
    }
}
