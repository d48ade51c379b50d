//! Attention on a fused projection, as a training step calls it.

use super::{Call, Found, IN_F32, Input, On, Random, Tensors, tensor};
use candle_core::Tensor;
use oqvl_kernels::CuSeqlens;
use oqvl_kernels::attention::{FusedBackward, FusedForward, Mask, Sequences, Shape, backward_workspace_len};
use oqvl_kernels::backend::Backend;
use serde_json::{Value, json};

/// Queries, keys and values are parts of the rows of one matrix.
#[derive(Debug, Clone)]
pub(crate) struct AttentionCall(Shape);

impl AttentionCall {
    pub(crate) fn new(heads: (usize, usize), head_dim: usize, mask: Mask, sequences: Sequences) -> Self {
        Self(Shape::new(heads, head_dim, mask, sequences).expect("the sizes of a case fit together"))
    }

    /// A batch of sequences of one length.
    pub(crate) fn batch(batch: usize, len: usize) -> Sequences {
        Sequences::Batch { batch, q_len: len, kv_len: len }
    }

    /// Sequences one after another.
    pub(crate) fn packed(boundaries: &[i32]) -> Sequences {
        Sequences::Packed(CuSeqlens::new(boundaries.to_vec()).expect("the boundaries of a case are in order"))
    }

    /// Rows of all sequences.
    fn rows(&self) -> usize {
        match &self.0.sequences {
            Sequences::Batch { batch, q_len, .. } => batch * q_len,
            Sequences::Packed(packed) => packed.num_rows(),
        }
    }

    /// Columns of queries, and of keys.
    fn cols(&self) -> (usize, usize) {
        (self.0.num_heads * self.0.head_dim, self.0.num_kv_heads * self.0.head_dim)
    }

    /// The gradient in its three parts, which are not of one size.
    fn parts(&self, dqkv: &Found) -> [Found; 3] {
        let (q, kv) = self.cols();
        let of = |name, range| dqkv.columns(name, q + 2 * kv, range);
        [of("dq", 0..q), of("dk", q..q + kv), of("dv", q + kv..q + 2 * kv)]
    }

    /// What a candle program calls, on tensors of the layout that it has.
    fn attend(&self, qkv: &Tensor) -> candle_core::Result<Tensor> {
        let Shape { num_heads, num_kv_heads, head_dim, mask, sequences, .. } = &self.0;
        let (q, kv) = self.cols();
        let part = |start: usize, heads: usize| {
            let rows = qkv.narrow(1, start, heads * head_dim)?;
            match sequences {
                Sequences::Batch { batch, q_len, .. } => {
                    rows.reshape((*batch, *q_len, heads, *head_dim))?.transpose(1, 2)?.contiguous()
                }
                Sequences::Packed(packed) => rows.reshape((packed.num_rows(), heads, *head_dim)),
            }
        };
        let (q, k, v) = (part(0, *num_heads)?, part(q, *num_kv_heads)?, part(q + kv, *num_kv_heads)?);
        let out = match sequences {
            Sequences::Batch { .. } => {
                oqvl_kernels::attention(&q, &k, &v, *mask)?.transpose(1, 2)?.contiguous()?
            }
            Sequences::Packed(packed) => oqvl_kernels::attention_varlen(&q, &k, &v, packed, *mask)?,
        };
        out.reshape((self.rows(), num_heads * head_dim))
    }
}

impl Call for AttentionCall {
    const OP: &'static str = "attention";

    fn name(&self) -> String {
        let Shape { num_heads, num_kv_heads, head_dim, mask, sequences, .. } = &self.0;
        let mask = if *mask == Mask::Causal { "causal" } else { "full" };
        let sequences = match sequences {
            Sequences::Batch { batch, q_len, .. } => format!("{batch} x {q_len}"),
            Sequences::Packed(packed) => {
                format!("{} packed in {}", packed.num_sequences(), packed.num_rows())
            }
        };
        format!("{sequences}, {num_heads}:{num_kv_heads} heads of {head_dim}, {mask}")
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let (q, kv) = self.cols();
        vec![random.half("qkv", &[self.rows(), q + 2 * kv]), random.half("dout", &[self.rows(), q])]
    }

    fn settings(&self) -> Value {
        let Shape { num_heads, num_kv_heads, mask, sequences, .. } = &self.0;
        let (batch, boundaries) = match sequences {
            Sequences::Batch { batch, .. } => (*batch, None),
            Sequences::Packed(packed) => (1, Some(packed.boundaries())),
        };
        json!({
            "heads": num_heads, "kv_heads": num_kv_heads, "causal": *mask == Mask::Causal,
            "batch": batch, "cu_seqlens": boundaries,
        })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, shape) = (on.backend, &self.0);
        let (qkv, dout) = (on.half("qkv")?, on.half("dout")?);
        let (q, kv) = self.cols();
        let mut out = on.room(self.rows() * q)?;
        let mut dqkv = on.room(self.rows() * (q + 2 * kv))?;
        let mut lse = on.room(shape.num_query_rows()?)?;
        let mut workspace = on.room(backward_workspace_len(shape)?)?;
        let boundaries = match &shape.sequences {
            Sequences::Batch { .. } => None,
            Sequences::Packed(packed) => Some(b.upload(packed.boundaries())?),
        };
        let cu_seqlens = boundaries.as_ref().map(|buffer| b.slice(buffer));
        let forward = FusedForward {
            qkv: b.slice(&qkv),
            cu_seqlens,
            out: b.slice_mut(&mut out),
            lse: b.slice_mut(&mut lse),
        };
        b.attention_forward(shape, forward)?;
        let backward = FusedBackward {
            qkv: b.slice(&qkv),
            cu_seqlens,
            out: b.slice(&out),
            lse: b.slice(&lse),
            dout: b.slice(&dout),
            dqkv: b.slice_mut(&mut dqkv),
            workspace: b.slice_mut(&mut workspace),
        };
        b.attention_backward(shape, backward)?;
        let mut results = vec![on.found("out", &out)?, on.found("lse", &lse)?.within(IN_F32)];
        results.extend(self.parts(&on.found("dqkv", &dqkv)?));
        Ok(results)
    }

    fn through_candle(&self, inputs: &Tensors<'_>) -> Option<anyhow::Result<Vec<Found>>> {
        let run = || {
            let (qkv, dout) = (inputs.var("qkv")?, inputs.var("dout")?);
            let out = self.attend(&qkv)?;
            let gradients = inputs.backward(&out, &dout, &[("dqkv", &qkv)])?;
            let mut results = vec![tensor("out", &out)?];
            results.extend(self.parts(&gradients[0]));
            Ok(results)
        };
        Some(run())
    }
}
