//! The candle operations.

use super::reference;
use super::shape::{CuSeqlens, Mask, Sequences, Shape};
use super::sys::Strides;
use crate::element::{Element, dense, dispatch, widened};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Storage, Tensor, WithDType, bail};

/// `softmax(q k^T / sqrt(head_dim)) v`.
///
/// `q`: `(batch, num_heads, q_len, head_dim)`, `k` and `v`: `(batch, num_kv_heads, kv_len, head_dim)`, same dtype
/// (bf16, f32 or f64); `num_heads` is a multiple of `num_kv_heads`, consecutive query heads share a key head.
/// Returns the shape of `q`. Scores are kept for one block of rows at a time; the backward computes them anew. On a GPU: bf16,
/// and a `head_dim` that is a multiple of 8 up to 128.
///
/// # Errors
/// If the shapes do not fit, the mask is causal and there are fewer keys than queries, or a GPU takes no such tensors.
///
/// Source: Vaswani et al., 2017; grouped queries: Ainslie et al., 2023.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Tensor> {
    apply(q, k, v, mask, None)
}

/// The same over sequences of several lengths, one after another, none of which sees another.
///
/// `q`: `(rows, num_heads, head_dim)`, `k` and `v`: `(rows, num_kv_heads, head_dim)`, bf16, f32 or f64; `cu_seqlens` says
/// where each sequence begins and ends. Returns the shape of `q`. On a GPU as [`attention`].
///
/// # Errors
/// If the shapes do not fit, `cu_seqlens` does not end at the last row, or a GPU takes no such tensors.
pub fn attention_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_seqlens: &CuSeqlens,
    mask: Mask,
) -> Result<Tensor> {
    apply(q, k, v, mask, Some(cu_seqlens.clone()))
}

fn apply(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask, packed: Option<CuSeqlens>) -> Result<Tensor> {
    let operation = Attention {
        mask,
        packed,
        #[cfg(feature = "cuda")]
        saved: super::cuda::Saved::default(),
    };
    widened([q, k, v], |[q, k, v]| {
        dense_channels(q)?.apply_op3(&dense_channels(k)?, &dense_channels(v)?, operation)
    })
}

/// The tensor itself if its channels are next to each other, wherever its rows are: transposed heads need no copy. Kernels of a
/// GPU also want every row to begin at a multiple of 16 bytes.
fn dense_channels(tensor: &Tensor) -> Result<Tensor> {
    const VECTOR: usize = 8;
    let strides = tensor.stride();
    let is_aligned = |at: &usize| tensor.device().is_cpu() || at.is_multiple_of(VECTOR);
    match strides.split_last() {
        Some((1, rest)) if rest.iter().chain([&tensor.layout().start_offset()]).all(is_aligned) => {
            Ok(tensor.clone())
        }
        _ => dense(tensor),
    }
}

pub(super) struct Attention {
    mask: Mask,
    pub(super) packed: Option<CuSeqlens>,
    /// What the forward on a GPU keeps for the backward; candle has no place for it.
    #[cfg(feature = "cuda")]
    pub(super) saved: super::cuda::Saved,
}

impl Attention {
    pub(super) fn shape(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<Shape> {
        if k != v {
            bail!("attention: k {k:?} and v {v:?} do not fit together");
        }
        let (heads, head_dim, kv_dim, sequences) = match (&self.packed, q, k) {
            (None, &[batch, num_heads, q_len, head_dim], &[kv_batch, num_kv_heads, kv_len, kv_dim]) => {
                if kv_batch != batch {
                    bail!("attention: q {q:?} and k {k:?} do not fit together");
                }
                ((num_heads, num_kv_heads), head_dim, kv_dim, Sequences::Batch { batch, q_len, kv_len })
            }
            (Some(packed), &[rows, num_heads, head_dim], &[kv_rows, num_kv_heads, kv_dim]) => {
                if rows != packed.num_rows() || kv_rows != rows {
                    let end = packed.num_rows();
                    bail!("attention: cu_seqlens ends at {end}, q has {rows} rows and k {kv_rows}");
                }
                ((num_heads, num_kv_heads), head_dim, kv_dim, Sequences::Packed(packed.clone()))
            }
            (None, ..) => bail!("attention takes (batch, heads, seq, head_dim), got {q:?} and {k:?}"),
            (Some(_), ..) => bail!("attention_varlen takes (rows, heads, head_dim), got {q:?} and {k:?}"),
        };
        if head_dim != kv_dim {
            bail!("attention: q {q:?} and k {k:?} do not fit together");
        }
        Shape::new(heads, head_dim, self.mask, sequences)
    }

    pub(super) fn strides(&self, strides: &[usize]) -> Strides {
        match (&self.packed, strides) {
            (None, &[batch, head, row, _]) => {
                Strides { batch: batch as i64, head: head as i64, row: row as i64 }
            }
            (Some(_), &[row, head, _]) => Strides { batch: 0, head: head as i64, row: row as i64 },
            _ => unreachable!("shape() has looked at the dimensions"),
        }
    }

    /// Of a contiguous tensor of these dimensions.
    pub(super) fn dense_strides(&self, dims: &[usize]) -> Strides {
        match *dims {
            [_, heads, rows, head_dim] => Strides::heads_first(heads, rows, head_dim),
            [rows, heads, head_dim] => Strides::rows_first(rows, heads, head_dim),
            _ => unreachable!("shape() has looked at the dimensions"),
        }
    }

    fn operand<'a, T: Element>(
        &self,
        storage: &'a CpuStorage,
        layout: &Layout,
    ) -> Result<reference::Operand<'a, T>> {
        // An empty view may begin beyond the end of its storage.
        let data = T::cpu_storage_as_slice(storage)?.get(layout.start_offset()..).unwrap_or_default();
        Ok(reference::Operand { data, strides: self.strides(layout.stride()) })
    }

    fn forward<T: Element>(
        &self,
        shape: &Shape,
        operands: [reference::Operand<'_, T>; 3],
        q_dims: &[usize],
    ) -> Result<Vec<T>> {
        let mut out = vec![T::zero(); q_dims.iter().product()];
        let strides = self.dense_strides(q_dims);
        reference::forward(shape, operands, reference::OperandMut { data: &mut out, strides }, None)?;
        Ok(out)
    }

    fn backward<T: Element>(&self, shape: &Shape, [q, k, v, dout]: [&Tensor; 4]) -> Result<[Tensor; 3]> {
        let storages = [q, k, v, dout].map(Tensor::storage_and_layout);
        let mut operands = Vec::with_capacity(storages.len());
        for (storage, layout) in &storages {
            let Storage::Cpu(storage) = &**storage else {
                bail!("attention: the tensors are on different devices")
            };
            operands.push(self.operand::<T>(storage, layout)?);
        }
        let [q_data, k_data, v_data, dout_data] = operands[..] else { unreachable!("four went in") };
        let mut gradients = [q, k, v].map(|tensor| vec![T::zero(); tensor.elem_count()]);
        let [dq, dk, dv] = &mut gradients;
        let gradient = |data, like: &Tensor| {
            let strides = self.dense_strides(like.dims());
            reference::OperandMut { data, strides }
        };
        let outputs = [gradient(&mut dq[..], q), gradient(&mut dk[..], k), gradient(&mut dv[..], v)];
        reference::backward(shape, [q_data, k_data, v_data], dout_data, outputs)?;
        let [dq, dk, dv] = gradients;
        let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?])
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "oqvl-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let shape = self.shape(ql.dims(), kl.dims(), vl.dims())?;
        let out = dispatch!(q.dtype(), "attention", T => {
            let operands = [self.operand::<T>(q, ql)?, self.operand::<T>(k, kl)?, self.operand::<T>(v, vl)?];
            T::to_cpu_storage_owned(self.forward(&shape, operands, ql.dims())?)
        });
        Ok((out, ql.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        ql: &Layout,
        k: &CudaStorage,
        kl: &Layout,
        v: &CudaStorage,
        vl: &Layout,
    ) -> Result<(CudaStorage, candle_core::Shape)> {
        let shape = self.shape(ql.dims(), kl.dims(), vl.dims())?;
        let out = super::cuda::forward(self, &shape, [(q, ql), (k, kl), (v, vl)])?;
        Ok((out, ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let shape = self.shape(q.dims(), k.dims(), v.dims())?;
        let grad = dense_channels(grad)?;
        #[cfg(feature = "cuda")]
        if q.device().is_cuda() {
            let [dq, dk, dv] = super::cuda::backward(self, &shape, [q, k, v, out, &grad])?;
            return Ok((Some(dq), Some(dk), Some(dv)));
        }
        // Only kernels need the result.
        let _ = out;
        let [dq, dk, dv] =
            dispatch!(q.dtype(), "attention", T => self.backward::<T>(&shape, [q, k, v, &grad])?);
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::reference::BLOCK_ROWS;
    use crate::gradcheck::{assert_same, check_gradients, random};
    use candle_core::{D, Device};

    /// The same with candle's own operations.
    fn unfused(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Tensor {
        let (batch, heads, q_len, head_dim) = q.dims4().unwrap();
        let (_, kv_heads, kv_len, _) = k.dims4().unwrap();
        let repeat = |t: &Tensor| {
            let shape = (batch, kv_heads, heads / kv_heads, kv_len, head_dim);
            t.unsqueeze(2).unwrap().expand(shape).unwrap().reshape((batch, heads, kv_len, head_dim)).unwrap()
        };
        let scores = (q.matmul(&repeat(k).t().unwrap()).unwrap() / (head_dim as f64).sqrt()).unwrap();
        let hidden: Vec<f64> = (0..q_len * kv_len)
            .map(|at| (at / kv_len, at % kv_len))
            .map(
                |(row, key)| {
                    if mask == Mask::Causal && key > row + kv_len - q_len { f64::NEG_INFINITY } else { 0.0 }
                },
            )
            .collect();
        let hidden = Tensor::from_vec(hidden, (q_len, kv_len), &Device::Cpu).unwrap();
        let p = candle_nn::ops::softmax(&scores.broadcast_add(&hidden).unwrap(), D::Minus1).unwrap();
        p.matmul(&repeat(v)).unwrap()
    }

    #[test]
    fn equals_the_unfused_formula() {
        let long = BLOCK_ROWS + 1;
        for (heads, kv_heads, q_len, kv_len) in [(1, 1, 1, 1), (4, 2, 3, 3), (6, 1, 2, 5), (2, 2, long, long)]
        {
            let q = random(&[2, heads, q_len, 4], 1);
            let (k, v) = (random(&[2, kv_heads, kv_len, 4], 2), random(&[2, kv_heads, kv_len, 4], 3));
            for mask in [Mask::Causal, Mask::Full] {
                assert_same(&attention(&q, &k, &v, mask).unwrap(), &unfused(&q, &k, &v, mask), 1e-12);
            }
        }
    }

    #[test]
    fn gradients_are_right() {
        for (heads, kv_heads, q_len, kv_len) in [(1, 1, 1, 1), (4, 2, 3, 3), (2, 1, 2, 4)] {
            for mask in [Mask::Causal, Mask::Full] {
                let q = random(&[1, heads, q_len, 3], 1);
                let (k, v) = (random(&[1, kv_heads, kv_len, 3], 2), random(&[1, kv_heads, kv_len, 3], 3));
                check_gradients(&[q, k, v], |inputs| attention(&inputs[0], &inputs[1], &inputs[2], mask));
            }
        }
    }

    #[test]
    fn gradients_across_blocks_equal_autograd() {
        let len = BLOCK_ROWS + 3;
        let inputs = [random(&[1, 2, len, 4], 1), random(&[1, 1, len, 4], 2), random(&[1, 1, len, 4], 3)];
        for mask in [Mask::Causal, Mask::Full] {
            let ours = attention(&inputs[0], &inputs[1], &inputs[2], mask)
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap();
            let slow = unfused(&inputs[0], &inputs[1], &inputs[2], mask).sqr().unwrap().sum_all().unwrap();
            let (ours, slow) = (ours.backward().unwrap(), slow.backward().unwrap());
            for input in &inputs {
                assert_same(ours.get(input).unwrap(), slow.get(input).unwrap(), 1e-11);
            }
        }
    }

    /// Packed, empty ones among them, or one at a time: the same.
    #[test]
    fn packed_sequences_do_not_see_each_other() {
        let boundaries = [0, 3, 3, 4, 4 + BLOCK_ROWS + 2];
        let packed = CuSeqlens::new(boundaries.map(|at| at as i32).to_vec()).unwrap();
        let rows = packed.num_rows();
        let inputs = [random(&[rows, 4, 4], 1), random(&[rows, 2, 4], 2), random(&[rows, 2, 4], 3)];
        for mask in [Mask::Causal, Mask::Full] {
            let together = attention_varlen(&inputs[0], &inputs[1], &inputs[2], &packed, mask).unwrap();
            let alone = boundaries.windows(2).filter(|pair| pair[0] < pair[1]).map(|pair| {
                let part = |input: &candle_core::Var| {
                    let part = input.narrow(0, pair[0], pair[1] - pair[0]).unwrap();
                    part.transpose(0, 1).unwrap().unsqueeze(0).unwrap()
                };
                let out = unfused(&part(&inputs[0]), &part(&inputs[1]), &part(&inputs[2]), mask);
                out.squeeze(0).unwrap().transpose(0, 1).unwrap()
            });
            let alone = Tensor::cat(&alone.collect::<Vec<_>>(), 0).unwrap();
            assert_same(&together, &alone, 1e-12);
            let gradients = |out: &Tensor| out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let (together, alone) = (gradients(&together), gradients(&alone));
            for input in &inputs {
                assert_same(together.get(input).unwrap(), alone.get(input).unwrap(), 1e-12);
            }
        }
    }

    #[test]
    fn gradients_of_packed_sequences_are_right() {
        let packed = CuSeqlens::new(vec![0, 2, 2, 5]).unwrap();
        for mask in [Mask::Causal, Mask::Full] {
            let inputs = [random(&[5, 2, 3], 1), random(&[5, 1, 3], 2), random(&[5, 1, 3], 3)];
            check_gradients(&inputs, |t| attention_varlen(&t[0], &t[1], &t[2], &packed, mask));
        }
    }

    /// Views whose heads are transposed, as a projection gives them, are read where they lie.
    #[test]
    fn heads_may_be_transposed_and_fused() {
        let fused = random(&[2, 5, 4 * 3], 1);
        let part = |first: usize, heads: usize| {
            let part = fused.narrow(2, first * 3, heads * 3).unwrap();
            part.reshape((2, 5, heads, 3)).unwrap().transpose(1, 2).unwrap()
        };
        let (q, k, v) = (part(0, 2), part(2, 1), part(3, 1));
        let dense = |tensor: &Tensor| tensor.contiguous().unwrap();
        let ours = attention(&q, &k, &v, Mask::Causal).unwrap();
        assert_same(&ours, &attention(&dense(&q), &dense(&k), &dense(&v), Mask::Causal).unwrap(), 1e-15);
        let gradients = |out: &Tensor| out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let expected = gradients(&unfused(&dense(&q), &dense(&k), &dense(&v), Mask::Causal));
        assert_same(gradients(&ours).get(&fused).unwrap(), expected.get(&fused).unwrap(), 1e-12);
    }

    #[test]
    fn without_keys_the_result_is_zero() {
        let q = random(&[1, 2, 3, 4], 1);
        let none = random(&[1, 1, 0, 4], 2);
        let out = attention(&q, &none, &none, Mask::Full).unwrap();
        assert_eq!(out.flatten_all().unwrap().to_vec1::<f64>().unwrap(), [0.0; 24]);
        let gradient = out.sum_all().unwrap().backward().unwrap();
        assert_eq!(gradient.get(&q).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap(), [0.0; 24]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (q, k) = (random(&[1, 2, 4, 4], 1), random(&[1, 1, 3, 4], 2));
        assert!(attention(&q, &k, &k, Mask::Causal).unwrap_err().to_string().contains("only 3 keys"));
        assert!(attention(&q, &random(&[1, 1, 3, 2], 2), &k, Mask::Full).is_err());
        let packed = CuSeqlens::new(vec![0, 2]).unwrap();
        let (q, k) = (random(&[3, 2, 4], 1), random(&[3, 1, 4], 2));
        let error = attention_varlen(&q, &k, &k, &packed, Mask::Causal).unwrap_err().to_string();
        assert!(error.contains("ends at 2"), "{error}");
        assert!(attention(&random(&[1, 3, 4, 4], 1), &random(&[1, 2, 4, 4], 2), &k, Mask::Full).is_err());
    }
}
