package dev.penumbra.internal.ffi;

import dev.penumbra.backend.FrozenWeight;
import dev.penumbra.backend.op.ActivationMass;
import dev.penumbra.backend.op.AdamW;
import dev.penumbra.backend.op.AttentionBackward;
import dev.penumbra.backend.op.AttentionBlocks;
import dev.penumbra.backend.op.AttentionForward;
import dev.penumbra.backend.op.AttentionMass;
import dev.penumbra.backend.op.BlockList;
import dev.penumbra.backend.op.Convert;
import dev.penumbra.backend.op.Dropout;
import dev.penumbra.backend.op.Embedding;
import dev.penumbra.backend.op.Fill;
import dev.penumbra.backend.op.Gemm;
import dev.penumbra.backend.op.LayerNorm;
import dev.penumbra.backend.op.LayerNormBackward;
import dev.penumbra.backend.op.LayerNormForward;
import dev.penumbra.backend.op.LinearCrossEntropy;
import dev.penumbra.backend.op.LoraGradients;
import dev.penumbra.backend.op.LoraProject;
import dev.penumbra.backend.op.LowRank;
import dev.penumbra.backend.op.Operation;
import dev.penumbra.backend.op.PredictAttention;
import dev.penumbra.backend.op.PredictMass;
import dev.penumbra.backend.op.RelativeMass;
import dev.penumbra.backend.op.SelectAttention;
import dev.penumbra.backend.op.SelectBlocks;
import dev.penumbra.internal.ffi.penumbra.Penumbra;
import dev.penumbra.internal.ffi.penumbra.pnb_activation_mass_params;
import dev.penumbra.internal.ffi.penumbra.pnb_adamw_params;
import dev.penumbra.internal.ffi.penumbra.pnb_attention_backward_params;
import dev.penumbra.internal.ffi.penumbra.pnb_attention_blocks;
import dev.penumbra.internal.ffi.penumbra.pnb_attention_forward_params;
import dev.penumbra.internal.ffi.penumbra.pnb_attention_mass_params;
import dev.penumbra.internal.ffi.penumbra.pnb_block_list;
import dev.penumbra.internal.ffi.penumbra.pnb_convert_params;
import dev.penumbra.internal.ffi.penumbra.pnb_dropout;
import dev.penumbra.internal.ffi.penumbra.pnb_embedding_params;
import dev.penumbra.internal.ffi.penumbra.pnb_fill_params;
import dev.penumbra.internal.ffi.penumbra.pnb_gemm_params;
import dev.penumbra.internal.ffi.penumbra.pnb_layer_norm;
import dev.penumbra.internal.ffi.penumbra.pnb_layer_norm_backward_params;
import dev.penumbra.internal.ffi.penumbra.pnb_layer_norm_forward_params;
import dev.penumbra.internal.ffi.penumbra.pnb_linear_cross_entropy_params;
import dev.penumbra.internal.ffi.penumbra.pnb_lora_gradients_params;
import dev.penumbra.internal.ffi.penumbra.pnb_lora_project_params;
import dev.penumbra.internal.ffi.penumbra.pnb_low_rank;
import dev.penumbra.internal.ffi.penumbra.pnb_predict_attention_params;
import dev.penumbra.internal.ffi.penumbra.pnb_predict_mass_params;
import dev.penumbra.internal.ffi.penumbra.pnb_relative_mass_params;
import dev.penumbra.internal.ffi.penumbra.pnb_select_attention_params;
import dev.penumbra.internal.ffi.penumbra.pnb_select_blocks_params;
import dev.penumbra.internal.ffi.penumbra.pnb_workspace;
import dev.penumbra.tensor.Tensor;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SegmentAllocator;
import java.util.List;
import java.util.function.BiConsumer;
import org.jspecify.annotations.Nullable;

/**
 * Writes operations as the C ABI's params structs, in the memory of one call. Structs start zeroed, so that an operand that
 * is not written is absent; every struct begins with its size.
 */
final class ParamsEncoder {

    private final SegmentAllocator memory;
    private final NativeBackend backend;
    private final boolean pointersRead;

    /** @param pointersRead false for a workspace query, which may describe tensors that no memory is behind yet */
    ParamsEncoder(SegmentAllocator memory, NativeBackend backend, boolean pointersRead) {
        this.memory = memory;
        this.backend = backend;
        this.pointersRead = pointersRead;
    }

    NativeCall encode(Operation operation) {
        return switch (operation) {
            case Fill op -> fill(op);
            case Convert op -> convert(op);
            case Gemm op -> gemm(op);
            case LoraProject op -> loraProject(op);
            case LoraGradients op -> loraGradients(op);
            case AttentionForward op -> attentionForward(op);
            case AttentionBackward op -> attentionBackward(op);
            case AttentionMass op -> attentionMass(op);
            case PredictAttention op -> predictAttention(op);
            case SelectAttention op -> selectAttention(op);
            case LayerNormForward op -> layerNormForward(op);
            case LayerNormBackward op -> layerNormBackward(op);
            case Embedding op -> embedding(op);
            case LinearCrossEntropy op -> linearCrossEntropy(op);
            case ActivationMass op -> activationMass(op);
            case PredictMass op -> predictMass(op);
            case RelativeMass op -> relativeMass(op);
            case SelectBlocks op -> selectBlocks(op);
            case AdamW op -> adamw(op);
        };
    }

    private NativeCall fill(Fill op) {
        MemorySegment p = struct(pnb_fill_params.layout(), pnb_fill_params::stream);
        pnb_fill_params.value(p, op.value());
        put(pnb_fill_params.d(p), op.d());
        return new NativeCall(p, Penumbra::pnb_fill, null);
    }

    private NativeCall convert(Convert op) {
        MemorySegment p = struct(pnb_convert_params.layout(), pnb_convert_params::stream);
        put(pnb_convert_params.s(p), op.s());
        put(pnb_convert_params.d(p), op.d());
        return new NativeCall(p, Penumbra::pnb_convert, null);
    }

    private NativeCall gemm(Gemm op) {
        MemorySegment p = struct(pnb_gemm_params.layout(), pnb_gemm_params::stream);
        pnb_gemm_params.epilogue(
                p,
                switch (op.epilogue()) {
                    case NONE -> Penumbra.PNB_EPILOGUE_NONE();
                    case RELU -> Penumbra.PNB_EPILOGUE_RELU();
                    case DRELU -> Penumbra.PNB_EPILOGUE_DRELU();
                });
        put(pnb_gemm_params.a(p), op.a());
        put(pnb_gemm_params.b(p), op.b());
        if (op.weight() != null) {
            pnb_gemm_params.weight(p, pointer(op.weight()));
            pnb_gemm_params.weight_use(
                    p,
                    switch (op.use()) {
                        case FORWARD -> Penumbra.PNB_WEIGHT_FORWARD();
                        case BACKWARD -> Penumbra.PNB_WEIGHT_BACKWARD();
                    });
        }
        pnb_gemm_params.low_rank_count(p, op.lowRank().size());
        pnb_gemm_params.low_rank(p, lowRank(op.lowRank()));
        put(pnb_gemm_params.bias(p), op.bias());
        put(pnb_gemm_params.residual(p), op.residual());
        put(pnb_gemm_params.relu_mask(p), op.reluMask());
        put(pnb_gemm_params.d(p), op.d());
        blocks(pnb_gemm_params.blocks(p), op.blocks());
        workspace(pnb_gemm_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_gemm, Penumbra::pnb_gemm_workspace);
    }

    private MemorySegment lowRank(List<LowRank> terms) {
        if (terms.isEmpty()) {
            return MemorySegment.NULL;
        }
        MemorySegment array = pnb_low_rank.allocateArray(terms.size(), memory).fill((byte) 0);
        for (int i = 0; i < terms.size(); i++) {
            LowRank term = terms.get(i);
            MemorySegment s = pnb_low_rank.asSlice(array, i);
            put(pnb_low_rank.h(s), term.h());
            put(pnb_low_rank.b(s), term.b());
            pnb_low_rank.column(s, term.column());
            pnb_low_rank.scale(s, term.scale());
            dropout(pnb_low_rank.dropout(s), term.dropout());
        }
        return array;
    }

    private NativeCall loraProject(LoraProject op) {
        return new NativeCall(projection(op), Penumbra::pnb_lora_project, null);
    }

    private MemorySegment projection(LoraProject op) {
        MemorySegment p = struct(pnb_lora_project_params.layout(), pnb_lora_project_params::stream);
        put(pnb_lora_project_params.x(p), op.x());
        put(pnb_lora_project_params.a(p), op.a());
        put(pnb_lora_project_params.h(p), op.h());
        dropout(pnb_lora_project_params.dropout(p), op.dropout());
        blocks(pnb_lora_project_params.x_blocks(p), op.xBlocks());
        pnb_lora_project_params.next(p, op.next() == null ? MemorySegment.NULL : projection(op.next()));
        return p;
    }

    private NativeCall loraGradients(LoraGradients op) {
        return new NativeCall(gradients(op), Penumbra::pnb_lora_gradients, Penumbra::pnb_lora_gradients_workspace);
    }

    private MemorySegment gradients(LoraGradients op) {
        MemorySegment p = struct(pnb_lora_gradients_params.layout(), pnb_lora_gradients_params::stream);
        pnb_lora_gradients_params.scaling(p, op.scaling());
        put(pnb_lora_gradients_params.dy(p), op.dy());
        put(pnb_lora_gradients_params.x(p), op.x());
        put(pnb_lora_gradients_params.h(p), op.h());
        put(pnb_lora_gradients_params.a(p), op.a());
        put(pnb_lora_gradients_params.b(p), op.b());
        put(pnb_lora_gradients_params.dh(p), op.dh());
        put(pnb_lora_gradients_params.da(p), op.da());
        put(pnb_lora_gradients_params.db(p), op.db());
        dropout(pnb_lora_gradients_params.dropout(p), op.dropout());
        norm(pnb_lora_gradients_params.norm(p), op.norm());
        blocks(pnb_lora_gradients_params.x_blocks(p), op.xBlocks());
        blocks(pnb_lora_gradients_params.dy_blocks(p), op.dyBlocks());
        pnb_lora_gradients_params.next(p, op.next() == null ? MemorySegment.NULL : gradients(op.next()));
        workspace(pnb_lora_gradients_params.workspace(p), op.workspace());
        return p;
    }

    private void norm(MemorySegment struct, @Nullable LayerNorm norm) {
        if (norm != null) {
            put(pnb_layer_norm.mean(struct), norm.mean());
            put(pnb_layer_norm.rstd(struct), norm.rstd());
            put(pnb_layer_norm.gamma(struct), norm.gamma());
            put(pnb_layer_norm.beta(struct), norm.beta());
        }
    }

    private NativeCall attentionForward(AttentionForward op) {
        MemorySegment p = struct(pnb_attention_forward_params.layout(), pnb_attention_forward_params::stream);
        pnb_attention_forward_params.scale(p, op.scale());
        put(pnb_attention_forward_params.q(p), op.q());
        put(pnb_attention_forward_params.k(p), op.k());
        put(pnb_attention_forward_params.v(p), op.v());
        put(pnb_attention_forward_params.o(p), op.o());
        put(pnb_attention_forward_params.lse(p), op.lse());
        put(pnb_attention_forward_params.cu_seqlens_q(p), op.cuSeqlensQ());
        put(pnb_attention_forward_params.cu_seqlens_k(p), op.cuSeqlensK());
        pnb_attention_forward_params.max_seqlen(p, op.maxSeqlen());
        blocks(pnb_attention_forward_params.blocks(p), op.blocks());
        return new NativeCall(p, Penumbra::pnb_attention_forward, null);
    }

    private NativeCall attentionBackward(AttentionBackward op) {
        MemorySegment p = struct(pnb_attention_backward_params.layout(), pnb_attention_backward_params::stream);
        pnb_attention_backward_params.scale(p, op.scale());
        put(pnb_attention_backward_params.q(p), op.q());
        put(pnb_attention_backward_params.k(p), op.k());
        put(pnb_attention_backward_params.v(p), op.v());
        put(pnb_attention_backward_params.o(p), op.o());
        put(pnb_attention_backward_params.lse(p), op.lse());
        put(pnb_attention_backward_params.d_o(p), op.dO());
        put(pnb_attention_backward_params.dq(p), op.dq());
        put(pnb_attention_backward_params.dk(p), op.dk());
        put(pnb_attention_backward_params.dv(p), op.dv());
        put(pnb_attention_backward_params.cu_seqlens(p), op.cuSeqlens());
        pnb_attention_backward_params.max_seqlen(p, op.maxSeqlen());
        blocks(pnb_attention_backward_params.blocks(p), op.blocks());
        workspace(pnb_attention_backward_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_attention_backward, Penumbra::pnb_attention_backward_workspace);
    }

    private NativeCall attentionMass(AttentionMass op) {
        MemorySegment p = struct(pnb_attention_mass_params.layout(), pnb_attention_mass_params::stream);
        pnb_attention_mass_params.scale(p, op.scale());
        put(pnb_attention_mass_params.q(p), op.q());
        put(pnb_attention_mass_params.k(p), op.k());
        put(pnb_attention_mass_params.lse(p), op.lse());
        put(pnb_attention_mass_params.cu_seqlens(p), op.cuSeqlens());
        pnb_attention_mass_params.max_seqlen(p, op.maxSeqlen());
        pnb_attention_mass_params.size(p, op.size());
        pnb_attention_mass_params.query_stride(p, op.queryStride());
        put(pnb_attention_mass_params.mass(p), op.mass());
        return new NativeCall(p, Penumbra::pnb_attention_mass, null);
    }

    private NativeCall predictAttention(PredictAttention op) {
        MemorySegment p = struct(pnb_predict_attention_params.layout(), pnb_predict_attention_params::stream);
        pnb_predict_attention_params.pool_rows(p, op.poolRows());
        put(pnb_predict_attention_params.pooled(p), op.pooled());
        put(pnb_predict_attention_params.a(p), op.a());
        put(pnb_predict_attention_params.bias(p), op.bias());
        put(pnb_predict_attention_params.distance(p), op.distance());
        put(pnb_predict_attention_params.cu_seqlens(p), op.cuSeqlens());
        pnb_predict_attention_params.tokens(p, op.tokens());
        pnb_predict_attention_params.max_seqlen(p, op.maxSeqlen());
        pnb_predict_attention_params.size(p, op.size());
        put(pnb_predict_attention_params.mass(p), op.mass());
        workspace(pnb_predict_attention_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_predict_attention, Penumbra::pnb_predict_attention_workspace);
    }

    private NativeCall selectAttention(SelectAttention op) {
        MemorySegment p = struct(pnb_select_attention_params.layout(), pnb_select_attention_params::stream);
        pnb_select_attention_params.coverage(p, op.coverage());
        put(pnb_select_attention_params.mass(p), op.mass());
        put(pnb_select_attention_params.table(p), op.table());
        put(pnb_select_attention_params.budgets(p), op.budgets());
        put(pnb_select_attention_params.cu_seqlens(p), op.cuSeqlens());
        pnb_select_attention_params.tokens(p, op.tokens());
        pnb_select_attention_params.max_seqlen(p, op.maxSeqlen());
        blocks(pnb_select_attention_params.blocks(p), op.blocks());
        put(pnb_select_attention_params.summary(p), op.summary());
        workspace(pnb_select_attention_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_select_attention, Penumbra::pnb_select_attention_workspace);
    }

    private NativeCall layerNormForward(LayerNormForward op) {
        MemorySegment p = struct(pnb_layer_norm_forward_params.layout(), pnb_layer_norm_forward_params::stream);
        pnb_layer_norm_forward_params.epsilon(p, op.epsilon());
        put(pnb_layer_norm_forward_params.x(p), op.x());
        put(pnb_layer_norm_forward_params.gamma(p), op.gamma());
        put(pnb_layer_norm_forward_params.beta(p), op.beta());
        put(pnb_layer_norm_forward_params.y(p), op.y());
        put(pnb_layer_norm_forward_params.mean(p), op.mean());
        put(pnb_layer_norm_forward_params.rstd(p), op.rstd());
        if (op.pooling() != null) {
            put(pnb_layer_norm_forward_params.pooled(p), op.pooling().pooled());
            put(pnb_layer_norm_forward_params.valid_rows(p), op.pooling().validRows());
            pnb_layer_norm_forward_params.pool_rows(p, op.pooling().rows());
        }
        pnb_layer_norm_forward_params.project(p, op.project() == null ? MemorySegment.NULL : projection(op.project()));
        return new NativeCall(p, Penumbra::pnb_layer_norm_forward, null);
    }

    private NativeCall layerNormBackward(LayerNormBackward op) {
        MemorySegment p = struct(pnb_layer_norm_backward_params.layout(), pnb_layer_norm_backward_params::stream);
        put(pnb_layer_norm_backward_params.dy(p), op.dy());
        put(pnb_layer_norm_backward_params.x(p), op.x());
        put(pnb_layer_norm_backward_params.mean(p), op.mean());
        put(pnb_layer_norm_backward_params.rstd(p), op.rstd());
        put(pnb_layer_norm_backward_params.gamma(p), op.gamma());
        put(pnb_layer_norm_backward_params.residual(p), op.residual());
        put(pnb_layer_norm_backward_params.dx(p), op.dx());
        return new NativeCall(p, Penumbra::pnb_layer_norm_backward, null);
    }

    private NativeCall embedding(Embedding op) {
        MemorySegment p = struct(pnb_embedding_params.layout(), pnb_embedding_params::stream);
        pnb_embedding_params.position_offset(p, op.positionOffset());
        put(pnb_embedding_params.tokens(p), op.tokens());
        put(pnb_embedding_params.table(p), op.table());
        put(pnb_embedding_params.positions(p), op.positions());
        put(pnb_embedding_params.position_table(p), op.positionTable());
        put(pnb_embedding_params.residual(p), op.residual());
        put(pnb_embedding_params.d(p), op.d());
        return new NativeCall(p, Penumbra::pnb_embedding, null);
    }

    private NativeCall linearCrossEntropy(LinearCrossEntropy op) {
        MemorySegment p = struct(pnb_linear_cross_entropy_params.layout(), pnb_linear_cross_entropy_params::stream);
        put(pnb_linear_cross_entropy_params.x(p), op.x());
        pnb_linear_cross_entropy_params.weight(p, pointer(op.weight()));
        put(pnb_linear_cross_entropy_params.rows(p), op.rows());
        put(pnb_linear_cross_entropy_params.targets(p), op.targets());
        put(pnb_linear_cross_entropy_params.grad_scale(p), op.gradScale());
        put(pnb_linear_cross_entropy_params.loss(p), op.loss());
        put(pnb_linear_cross_entropy_params.dx(p), op.dx());
        workspace(pnb_linear_cross_entropy_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_linear_cross_entropy, Penumbra::pnb_linear_cross_entropy_workspace);
    }

    private NativeCall activationMass(ActivationMass op) {
        MemorySegment p = struct(pnb_activation_mass_params.layout(), pnb_activation_mass_params::stream);
        pnb_activation_mass_params.block_size(p, op.blockSize());
        put(pnb_activation_mass_params.x(p), op.x());
        put(pnb_activation_mass_params.relu_mask(p), op.reluMask());
        put(pnb_activation_mass_params.norms(p), op.norms());
        put(pnb_activation_mass_params.valid_rows(p), op.validRows());
        pnb_activation_mass_params.rows_per_list(p, op.rowsPerList());
        put(pnb_activation_mass_params.block_mass(p), op.blockMass());
        put(pnb_activation_mass_params.neuron_mass(p), op.neuronMass());
        put(pnb_activation_mass_params.neuron_fired(p), op.neuronFired());
        workspace(pnb_activation_mass_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_activation_mass, Penumbra::pnb_activation_mass_workspace);
    }

    private NativeCall predictMass(PredictMass op) {
        MemorySegment p = struct(pnb_predict_mass_params.layout(), pnb_predict_mass_params::stream);
        pnb_predict_mass_params.units_per_score(p, op.unitsPerScore());
        put(pnb_predict_mass_params.pooled(p), op.pooled());
        put(pnb_predict_mass_params.a(p), op.a());
        put(pnb_predict_mass_params.b(p), op.b());
        put(pnb_predict_mass_params.bias(p), op.bias());
        put(pnb_predict_mass_params.norms(p), op.norms());
        pnb_predict_mass_params.pooled_per_list(p, op.pooledPerList());
        put(pnb_predict_mass_params.scores(p), op.scores());
        workspace(pnb_predict_mass_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_predict_mass, Penumbra::pnb_predict_mass_workspace);
    }

    private NativeCall relativeMass(RelativeMass op) {
        MemorySegment p = struct(pnb_relative_mass_params.layout(), pnb_relative_mass_params::stream);
        pnb_relative_mass_params.block_size(p, op.blockSize());
        pnb_relative_mass_params.threshold(p, op.threshold());
        pnb_relative_mass_params.share(p, op.share());
        put(pnb_relative_mass_params.neuron_mass(p), op.neuronMass());
        put(pnb_relative_mass_params.scores(p), op.scores());
        return new NativeCall(p, Penumbra::pnb_relative_mass, null);
    }

    private NativeCall selectBlocks(SelectBlocks op) {
        MemorySegment p = struct(pnb_select_blocks_params.layout(), pnb_select_blocks_params::stream);
        pnb_select_blocks_params.coverage(p, op.coverage());
        put(pnb_select_blocks_params.scores(p), op.scores());
        blocks(pnb_select_blocks_params.blocks(p), op.blocks());
        put(pnb_select_blocks_params.summary(p), op.summary());
        return new NativeCall(p, Penumbra::pnb_select_blocks, null);
    }

    private NativeCall adamw(AdamW op) {
        MemorySegment p = struct(pnb_adamw_params.layout(), pnb_adamw_params::stream);
        pnb_adamw_params.beta1(p, op.beta1());
        pnb_adamw_params.beta2(p, op.beta2());
        pnb_adamw_params.epsilon(p, op.epsilon());
        pnb_adamw_params.weight_decay(p, op.weightDecay());
        pnb_adamw_params.max_norm(p, op.maxNorm());
        put(pnb_adamw_params.param(p), op.param());
        put(pnb_adamw_params.grad(p), op.grad());
        put(pnb_adamw_params.m(p), op.m());
        put(pnb_adamw_params.v(p), op.v());
        put(pnb_adamw_params.schedule(p), op.schedule());
        put(pnb_adamw_params.grad_norm(p), op.gradNorm());
        workspace(pnb_adamw_params.workspace(p), op.workspace());
        return new NativeCall(p, Penumbra::pnb_adamw, Penumbra::pnb_adamw_workspace);
    }

    private MemorySegment struct(MemoryLayout layout, BiConsumer<MemorySegment, MemorySegment> stream) {
        MemorySegment struct = memory.allocate(layout).fill((byte) 0);
        struct.set(Penumbra.C_INT, 0, Math.toIntExact(layout.byteSize()));
        stream.accept(struct, backend.stream());
        return struct;
    }

    private MemorySegment pointer(FrozenWeight weight) {
        if (!(weight instanceof NativeWeight packed)) {
            throw new IllegalArgumentException("expected a weight that this backend packed, found " + weight);
        }
        return packed.pointerFor(backend);
    }

    /** A pointer of the wrong device would crash where it is read: it stops here. */
    private void put(MemorySegment struct, @Nullable Tensor tensor) {
        if (tensor != null && pointersRead && tensor.isHost() != backend.device().isHost()) {
            throw new IllegalArgumentException(
                    "expected memory of " + backend.device() + ", found another device's " + tensor
                            + ": upload or download it first");
        }
        TensorStruct.write(struct, tensor);
    }

    private void blocks(MemorySegment struct, @Nullable BlockList blocks) {
        if (blocks != null) {
            put(pnb_block_list.indices(struct), blocks.indices());
            put(pnb_block_list.counts(struct), blocks.counts());
            pnb_block_list.size(struct, blocks.size());
            pnb_block_list.rows_per_list(struct, blocks.rowsPerList());
        }
    }

    private void blocks(MemorySegment struct, @Nullable AttentionBlocks blocks) {
        if (blocks != null) {
            put(pnb_attention_blocks.indices(struct), blocks.indices());
            put(pnb_attention_blocks.counts(struct), blocks.counts());
            put(pnb_attention_blocks.t_indices(struct), blocks.transposedIndices());
            put(pnb_attention_blocks.t_counts(struct), blocks.transposedCounts());
            put(pnb_attention_blocks.order(struct), blocks.order());
            pnb_attention_blocks.size(struct, blocks.size());
        }
    }

    private void dropout(MemorySegment struct, @Nullable Dropout dropout) {
        if (dropout != null) {
            pnb_dropout.p(struct, dropout.p());
            pnb_dropout.stream(struct, dropout.stream());
            put(pnb_dropout.state(struct), dropout.state());
        }
    }

    private void workspace(MemorySegment struct, @Nullable Tensor bytes) {
        if (bytes == null || !pointersRead) {
            return;
        }
        if (!bytes.isContiguous() || bytes.isHost() != backend.device().isHost()) {
            throw new IllegalArgumentException(
                    "expected a contiguous workspace of " + backend.device() + ", found " + bytes);
        }
        pnb_workspace.data(struct, MemorySegment.ofAddress(bytes.address()));
        pnb_workspace.bytes(struct, bytes.byteSize());
    }
}
