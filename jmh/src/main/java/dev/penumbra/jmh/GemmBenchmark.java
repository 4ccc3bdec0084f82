package dev.penumbra.jmh;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.tensor.DType;
import dev.penumbra.tensor.Tensor;
import java.util.List;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.Param;

/** The products of a decoder layer with frozen weights, each with the epilogue it has in a step. */
public class GemmBenchmark extends DeviceState {

    /** A decoder layer's linear layers; QKV is q_proj, k_proj and v_proj stacked, with adapters on q and v. */
    public enum Layer {
        QKV, OUT, FC1, FC2
    }

    @Param
    public Layer layer;
    @Param({"BF16", "F32"})
    public DType dtype;

    private Gemm forward;
    private Gemm backward;

    @Override
    void prepare() {
        int h = shape.hiddenSize;
        int in = layer == Layer.FC2 ? shape.ffnDim : h;
        int out = switch (layer) {
            case QKV -> 3 * h;
            case FC1 -> shape.ffnDim;
            case OUT, FC2 -> h;
        };
        FrozenWeight weight = weight(dtype, out, in);
        Tensor x = uniform(1, dtype, tokens(), in);
        Tensor y = zeros(dtype, tokens(), out);
        Tensor dy = uniform(1, dtype, tokens(), out);
        Tensor dx = zeros(dtype, tokens(), in);
        Gemm.Builder forwards = Gemm.forward(x, weight, y).bias(uniform(1, DType.F32, out));
        Gemm.Builder backwards = Gemm.backward(dy, weight, dx);
        switch (layer) {
            case QKV -> {
                forwards.lowRank(List.of(adapterOutput(0), adapterOutput(2L * h)));
                backwards.lowRank(List.of(adapterInputGradient(), adapterInputGradient()));
            }
            case OUT -> forwards.residual(uniform(1, dtype, tokens(), out));
            case FC1 -> forwards.relu(mask());
            case FC2 -> {
                forwards.residual(uniform(1, dtype, tokens(), out));
                Tensor mask = mask();
                // A mask as ReLU leaves it: about half of its bits set.
                runOnce(withWorkspace(Gemm.forward(dy, weight(dtype, in, out), zeros(dtype, tokens(), in)).relu(mask)));
                backwards.drelu(mask);
            }
        }
        forward = withWorkspace(forwards);
        backward = withWorkspace(backwards);
    }

    private LowRank adapterOutput(long column) {
        return new LowRank(uniform(1, DType.F32, tokens(), RANK), uniform(1, DType.F32, shape.hiddenSize, RANK), column, 8,
                null);
    }

    private LowRank adapterInputGradient() {
        return new LowRank(uniform(1, DType.F32, tokens(), RANK),
                uniform(1, DType.F32, RANK, shape.hiddenSize).transpose(), 0, 1, null);
    }

    private Tensor mask() {
        return zeros(DType.U8, tokens(), Math.ceilDiv(shape.ffnDim, 8));
    }

    private Gemm withWorkspace(Gemm.Builder gemm) {
        return gemm.workspace(workspace(gemm.build())).build();
    }

    @Benchmark
    public void forward() {
        measure(forward);
    }

    @Benchmark
    public void backward() {
        measure(backward);
    }
}
