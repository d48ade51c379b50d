//! The calls that are checked.

use crate::case::{
    AdamWCall, AttentionCall, AvgPoolCall, BiasGeluCall, Case, ColumnSumCall, CrossEntropyCall,
    ElementwiseCall, EmbeddingCall, GatherRowsCall, GemmCall, Gradients, Kind, LabelHeadCall, NormCall, Past,
    PatchifyCall, Precision, RopeCall, SwigluCall,
};
use oqvl_kernels::Rows;
use oqvl_kernels::attention::Mask;
use oqvl_kernels::avg_pool::Pooling;
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::gemm::{Epilogue, Gemm};

/// Calls of sizes that training has, and of the sizes at the edges of blocks.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = small();
    cases.extend([
        attention((12, 2), 128, Mask::Causal, &[0, 1024]),
        attention((6, 1), 128, Mask::Causal, &[0, 4096]),
        attention((12, 2), 128, Mask::Causal, &[0, 1, 1, 64, 129, 400, 1023, 1280]),
        attention_batch((4, 2), 64, Mask::Causal, 2, 500),
        attention_batch((16, 16), 72, Mask::Full, 2, 729),
        attention_batch((4, 4), 64, Mask::Full, 2, 197),
        pooling(4, 27, 12, 1152),
        pooling(2, 27, 27, 1152),
        pooling(3, 12, 4, 1152),
        bias_gelu(Gelu::Exact, 1296, 1536),
        bias_gelu(Gelu::Exact, 4097, 129),
        bias_gelu(Gelu::Tanh, 1458, 4304),
        bias_gelu(Gelu::Tanh, 4097, 129),
        column_sum(4096, 2048),
        column_sum(4097, 129),
        gemm(Gemm::new(1024, 2048, 1536).with_b_transposed().with_epilogue(Epilogue::Bias)),
        gemm(Gemm::new(1024, 4304, 1152).with_b_transposed().with_epilogue(Epilogue::GeluBias)),
        gemm_to_full(Gemm::new(2048, 1536, 1024).with_a_transposed().accumulating()),
        gemm_to_full(Gemm::new(2048, 1536, 1024).with_a_transposed()),
        gemm(Gemm::new(1000, 1536, 8960)),
        norm(Kind::Rms, Past::Nothing, 4096, 1536),
        norm(Kind::Rms, Past::Residual, 4096, 1536),
        norm(Kind::Rms, Past::Residual, 1001, 896),
        norm(Kind::Layer, Past::Nothing, 1458, 1152),
        norm(Kind::Layer, Past::Residual, 1458, 1152),
        norm(Kind::Layer, Past::Residual, 65, 4096),
        swiglu(1024, 8960),
        rope((12, 2), 128, &[0, 1, 1, 700, 4096]),
        rope((14, 2), 64, &[0, 333, 1001]),
        embedding(4096, 144, 151_936, 256),
        embedding(777, 288, 5000, 1536),
        gather_rows(4096, 746, 1536),
        gather_rows(746, 4096, 1536),
        patchify(4, (27, 27), 14),
        patchify(1, (24, 16), 16),
        adamw(Gradients::Finite, 1 << 20, 1 << 10),
        adamw(Gradients::Overflowing, 0, 4_000_008),
        cross_entropy(256, 151_936, 0.0),
        cross_entropy(130, 1003, 1e-4),
        // More channels would only make the reference slow.
        label_head(24, 256, 151_936, 8),
        label_head(1000, 1536, 1000, 300),
        Case::Elementwise(ElementwiseCall(4096 * 1536)),
    ]);
    cases
}

/// Calls that take no time on a CPU either.
pub(crate) fn small() -> Vec<Case> {
    let product = Gemm::new(33, 40, 24);
    let mut cases: Vec<Case> =
        [1, 63, 64, 65].into_iter().map(|len| attention_batch((2, 1), 64, Mask::Causal, 1, len)).collect();
    cases.extend([
        attention_batch((2, 2), 72, Mask::Full, 2, 70),
        attention((4, 2), 128, Mask::Causal, &[0, 5, 5, 70]),
        pooling(2, 5, 3, 16),
        pooling(1, 3, 7, 13),
        bias_gelu(Gelu::Exact, 1, 9),
        bias_gelu(Gelu::Exact, 33, 24),
        bias_gelu(Gelu::Tanh, 1, 9),
        bias_gelu(Gelu::Tanh, 33, 24),
        column_sum(70, 24),
        gemm(product),
        gemm(product.with_a_transposed()),
        gemm(product.with_b_transposed()),
        gemm(product.with_a_transposed().with_b_transposed()),
        gemm(product.with_epilogue(Epilogue::Bias)),
        gemm(product.with_epilogue(Epilogue::Gelu)),
        gemm_to_full(product.with_a_transposed().accumulating()),
        gemm_to_full(product.with_a_transposed()),
        gemm(Gemm::new(1, 8, 8)),
        norm(Kind::Rms, Past::Nothing, 1, 8),
        norm(Kind::Rms, Past::Residual, 70, 136),
        norm(Kind::Layer, Past::Nothing, 33, 264),
        norm(Kind::Layer, Past::Residual, 70, 136),
        swiglu(1, 8),
        swiglu(33, 136),
        rope((2, 1), 64, &[0, 3, 3, 40]),
        rope((3, 1), 10, &[0, 33]),
        embedding(70, 12, 50, 24),
        embedding(33, 0, 9, 13),
        gather_rows(20, 33, 24),
        gather_rows(33, 1, 13),
        patchify(2, (3, 2), 14),
        patchify(1, (1, 3), 5),
        adamw(Gradients::Finite, 64, 40),
        adamw(Gradients::Overflowing, 64, 40),
        adamw(Gradients::Finite, 0, 8),
        cross_entropy(33, 1003, 1e-4),
        cross_entropy(5, 40, 0.0),
        label_head(33, 64, 200, 10),
        Case::Elementwise(ElementwiseCall(1003)),
    ]);
    cases
}

fn attention(heads: (usize, usize), head_dim: usize, mask: Mask, boundaries: &[i32]) -> Case {
    Case::Attention(AttentionCall::new(heads, head_dim, mask, AttentionCall::packed(boundaries)))
}

fn attention_batch(heads: (usize, usize), head_dim: usize, mask: Mask, batch: usize, len: usize) -> Case {
    Case::Attention(AttentionCall::new(heads, head_dim, mask, AttentionCall::batch(batch, len)))
}

fn pooling(batch: usize, grid: usize, pooled: usize, channels: usize) -> Case {
    Case::AvgPool(AvgPoolCall(Pooling { batch, grid, pooled, channels }))
}

fn bias_gelu(kind: Gelu, rows: usize, cols: usize) -> Case {
    Case::BiasGelu(BiasGeluCall(kind, Rows { rows, cols }))
}

fn column_sum(rows: usize, cols: usize) -> Case {
    Case::ColumnSum(ColumnSumCall(Rows { rows, cols }))
}

fn gemm(gemm: Gemm) -> Case {
    Case::Gemm(GemmCall(gemm, Precision::Half))
}

fn gemm_to_full(gemm: Gemm) -> Case {
    Case::Gemm(GemmCall(gemm, Precision::Full))
}

fn norm(kind: Kind, past: Past, rows: usize, hidden: usize) -> Case {
    Case::Norm(NormCall { kind, past, rows, hidden })
}

fn swiglu(rows: usize, cols: usize) -> Case {
    Case::Swiglu(SwigluCall(Rows { rows, cols }))
}

fn rope(heads: (usize, usize), head_dim: usize, boundaries: &[i32]) -> Case {
    Case::Rope(RopeCall::new(heads, head_dim, boundaries))
}

fn embedding(rows: usize, visual_rows: usize, vocab: usize, hidden: usize) -> Case {
    Case::Embedding(EmbeddingCall { rows, visual_rows, vocab, hidden })
}

fn gather_rows(from_rows: usize, rows: usize, cols: usize) -> Case {
    Case::GatherRows(GatherRowsCall { from_rows, rows, cols })
}

fn patchify(batch: usize, grid: (usize, usize), edge: usize) -> Case {
    Case::Patchify(PatchifyCall::new(batch, grid, edge))
}

fn adamw(gradients: Gradients, decaying: usize, others: usize) -> Case {
    Case::AdamW(AdamWCall { ranges: [decaying, others], gradients })
}

fn cross_entropy(rows: usize, vocab: usize, z_loss: f32) -> Case {
    Case::CrossEntropy(CrossEntropyCall { rows, vocab, z_loss })
}

fn label_head(rows: usize, hidden: usize, vocab: usize, chunk_rows: usize) -> Case {
    Case::LabelHead(LabelHeadCall { rows, hidden, vocab, chunk_rows })
}
