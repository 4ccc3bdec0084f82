package dev.penumbra.jmh;

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

    private int in() {
        return layer == Layer.FC2 ? shape.ffnDim : shape.hiddenSize;
    }

    private int out() {
        return switch (layer) {
            case QKV -> 3 * shape.hiddenSize;
            case FC1 -> shape.ffnDim;
            case OUT, FC2 -> shape.hiddenSize;
        };
    }

    private LowRank adapterOutput(long column) {
        return new LowRank(uniform(1, DType.F32, tokens(), RANK), uniform(1, DType.F32, shape.hiddenSize, RANK), column, 8,
                null);
    }

    private LowRank adapterInputGradient() {
        return new LowRank(uniform(1, DType.F32, tokens(), RANK),
                uniform(1, DType.F32, RANK, shape.hiddenSize).transpose(), 0, 1, null);
    }

    private Work work(Gemm.Builder gemm) {
        return new Work(withWorkspace(space -> gemm.workspace(space).build()));
    }

    @Benchmark
    public void forward() {
        measure(() -> {
            Tensor x = uniform(1, dtype, tokens(), in());
            Gemm.Builder gemm = Gemm.forward(x, weight(dtype, out(), in()), zeros(dtype, tokens(), out()))
                    .bias(uniform(1, DType.F32, out()));
            return work(switch (layer) {
                case QKV -> gemm.lowRank(List.of(adapterOutput(0), adapterOutput(2L * shape.hiddenSize)));
                case OUT, FC2 -> gemm.residual(uniform(1, dtype, tokens(), out()));
                case FC1 -> gemm.relu(mask(tokens(), shape.ffnDim));
            });
        });
    }

    @Benchmark
    public void backward() {
        measure(() -> {
            Tensor dy = uniform(1, dtype, tokens(), out());
            Gemm.Builder gemm = Gemm.backward(dy, weight(dtype, out(), in()), zeros(dtype, tokens(), in()));
            return work(switch (layer) {
                case QKV -> gemm.lowRank(List.of(adapterInputGradient(), adapterInputGradient()));
                case OUT, FC1 -> gemm;
                case FC2 -> gemm.drelu(mask(tokens(), shape.ffnDim));
            });
        });
    }
}
