//! Attention, beside PyTorch's.

use super::{Backends, Figure, Timed, Work, best, full_room, numbers, room, time, timings};
use crate::torch::Torch;
use oqvl_kernels::CuSeqlens;
use oqvl_kernels::attention::{FusedBackward, FusedForward, Mask, Sequences, Shape, backward_workspace_len};
use serde::{Deserialize, Serialize};

/// Attention as PyTorch is asked for it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AttentionCall {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    len: usize,
    head_dim: usize,
    causal: bool,
}

impl AttentionCall {
    fn name(&self) -> String {
        let Self { batch, heads, kv_heads, len, head_dim, causal } = self;
        let mask = if *causal { "causal" } else { "full" };
        format!("{batch} x {len}, {heads}:{kv_heads} heads of {head_dim}, {mask}")
    }

    /// Of the two products of the forward; the mask halves them.
    fn operations(&self) -> f64 {
        let scores = (self.batch * self.heads * self.len * self.len) as f64;
        4.0 * scores * self.head_dim as f64 * if self.causal { 0.5 } else { 1.0 }
    }
}

/// What PyTorch answers of one call.
#[derive(Debug, Deserialize)]
struct AttentionTimes {
    forward: Backends,
    backward: Backends,
}

/// As training has them: the language model, one and four packs at a time, and the vision tower.
pub(super) const CALLS: [AttentionCall; 3] = [
    AttentionCall { batch: 1, heads: 12, kv_heads: 2, len: 4096, head_dim: 128, causal: true },
    AttentionCall { batch: 4, heads: 12, kv_heads: 2, len: 4096, head_dim: 128, causal: true },
    AttentionCall { batch: 23, heads: 16, kv_heads: 16, len: 729, head_dim: 72, causal: false },
];

/// Forward and backward of each call.
pub(super) fn figures<B: Timed>(
    b: &B,
    torch: Option<&Torch>,
    calls: &[AttentionCall],
) -> anyhow::Result<Vec<Figure>> {
    /// Shares of the speed of PyTorch's best that are asked for on `mma.sync` alone.
    const FORWARD_BOUND: f64 = 0.6;
    const BACKWARD_BOUND: f64 = 0.5;
    let mut figures = Vec::new();
    for call in calls {
        println!("attention: {}", call.name());
        figures.extend(figures_of(b, call)?);
    }
    let Some(times) = timings::<AttentionTimes>(torch, "attention", &calls) else { return Ok(figures) };
    anyhow::ensure!(times.len() == calls.len(), "PyTorch answers {} of {} calls", times.len(), calls.len());
    for (pair, times) in figures.chunks_exact_mut(2).zip(times) {
        pair[0].peer = best(&times.forward, FORWARD_BOUND);
        pair[1].peer = best(&times.backward, BACKWARD_BOUND);
    }
    Ok(figures)
}

fn figures_of<B: Timed>(b: &B, call: &AttentionCall) -> anyhow::Result<[Figure; 2]> {
    let AttentionCall { batch, heads, kv_heads, len, head_dim, causal } = *call;
    let mask = if causal { Mask::Causal } else { Mask::Full };
    // As training passes them: packed, the parts of a fused projection.
    let boundaries =
        (0..=batch).map(|sequence| i32::try_from(sequence * len)).collect::<Result<Vec<i32>, _>>()?;
    let cu_seqlens = b.upload(&boundaries)?;
    let shape =
        Shape::new((heads, kv_heads), head_dim, mask, Sequences::Packed(CuSeqlens::new(boundaries)?))?;
    let (qkv_len, out_len) =
        (batch * len * (heads + 2 * kv_heads) * head_dim, batch * len * heads * head_dim);
    let (qkv, dout) = (numbers(b, qkv_len)?, numbers(b, out_len)?);
    let (mut out, mut dqkv) = (room(b, out_len)?, room(b, qkv_len)?);
    let mut lse = full_room(b, shape.num_query_rows()?)?;
    let mut workspace = full_room(b, backward_workspace_len(&shape)?)?;
    let forward = time(b, || {
        let args = FusedForward {
            qkv: b.slice(&qkv),
            cu_seqlens: Some(b.slice(&cu_seqlens)),
            out: b.slice_mut(&mut out),
            lse: b.slice_mut(&mut lse),
        };
        b.attention_forward(&shape, args)
    })?;
    let backward = time(b, || {
        let args = FusedBackward {
            qkv: b.slice(&qkv),
            cu_seqlens: Some(b.slice(&cu_seqlens)),
            out: b.slice(&out),
            lse: b.slice(&lse),
            dout: b.slice(&dout),
            dqkv: b.slice_mut(&mut dqkv),
            workspace: b.slice_mut(&mut workspace),
        };
        b.attention_backward(&shape, args)
    })?;
    let operations = call.operations();
    Ok([
        Figure::new("attention", format!("forward, {}", call.name()), forward, Work::Operations(operations)),
        // Five products where the forward has two.
        Figure::new(
            "attention",
            format!("backward, {}", call.name()),
            backward,
            Work::Operations(2.5 * operations),
        ),
    ])
}

#[cfg(test)]
pub(super) fn small_calls() -> [AttentionCall; 2] {
    [
        AttentionCall { batch: 2, heads: 4, kv_heads: 2, len: 9, head_dim: 64, causal: true },
        AttentionCall { batch: 1, heads: 2, kv_heads: 2, len: 20, head_dim: 72, causal: false },
    ]
}
