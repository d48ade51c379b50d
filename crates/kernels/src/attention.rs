//! Softmax attention with grouped queries.

use crate::element::{Element, dispatch, elements, lit, widened, with_elements};
use crate::matmul::{Matrix, Output, matmul};
use crate::rows;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

/// Query rows handled at once; under a causal mask the keys after them are not even multiplied.
const BLOCK_ROWS: usize = 64;

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and the keys before it; with more keys than queries, the last query sees all keys.
    Causal,
    /// All keys.
    Full,
}

/// `softmax(q k^T / sqrt(head_dim)) v`.
///
/// `q`: `(batch, num_heads, q_len, head_dim)`, `k` and `v`: `(batch, num_kv_heads, kv_len, head_dim)`, same dtype
/// (bf16, f32 or f64); `num_heads` is a multiple of `num_kv_heads`, consecutive query heads share a key head.
/// Returns the shape of `q`. Scores are kept for one block of rows at a time; the backward computes them anew.
///
/// # Errors
/// If the shapes do not fit, or the mask is causal and there are fewer keys than queries.
///
/// Source: Vaswani et al., 2017; grouped queries: Ainslie et al., 2023.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Tensor> {
    widened([q, k, v], |[q, k, v]| {
        q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention { mask })
    })
}

struct Attention {
    mask: Mask,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    num_heads: usize,
    num_kv_heads: usize,
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
}

impl Sizes {
    /// Where query head `index` (of all batch rows) and its key head begin.
    fn offsets(&self, index: usize) -> (usize, usize) {
        let (row, head) = (index / self.num_heads, index % self.num_heads);
        let kv_head = row * self.num_kv_heads + head / (self.num_heads / self.num_kv_heads);
        (index * self.q_len * self.head_dim, kv_head * self.kv_len * self.head_dim)
    }
}

/// One block of query rows: the matrix shapes of its products.
struct Block {
    rows: Matrix,
    keys: Matrix,
    scores: Matrix,
    first_row: usize,
}

impl Attention {
    fn sizes(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<Sizes> {
        let (&[batch, num_heads, q_len, head_dim], &[kv_batch, num_kv_heads, kv_len, kv_dim]) = (q, k) else {
            bail!("attention takes (batch, heads, seq, head_dim), got {q:?} and {k:?}")
        };
        let fits = kv_batch == batch && kv_dim == head_dim && k == v;
        if !fits || num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) {
            bail!("attention: q {q:?}, k {k:?} and v {v:?} do not fit together");
        }
        if self.mask == Mask::Causal && kv_len < q_len {
            bail!("causal attention: {q_len} queries but only {kv_len} keys");
        }
        Ok(Sizes { batch, num_heads, num_kv_heads, q_len, kv_len, head_dim })
    }

    fn blocks(&self, sizes: Sizes) -> impl Iterator<Item = Block> + use<> {
        let mask = self.mask;
        (0..sizes.q_len).step_by(BLOCK_ROWS).map(move |first_row| {
            let rows = BLOCK_ROWS.min(sizes.q_len - first_row);
            let keys = match mask {
                Mask::Full => sizes.kv_len,
                Mask::Causal => sizes.kv_len - sizes.q_len + first_row + rows,
            };
            Block {
                rows: Matrix::row_major(rows, sizes.head_dim, sizes.head_dim),
                keys: Matrix::row_major(keys, sizes.head_dim, sizes.head_dim),
                scores: Matrix::row_major(rows, keys, keys),
                first_row,
            }
        })
    }

    /// Probabilities of one block of rows, into `scores`.
    fn probabilities<T: Element>(
        &self,
        q: &[T],
        k: &[T],
        scores: &mut Vec<T>,
        block: &Block,
        s: Sizes,
    ) -> Result<()> {
        let Matrix { rows: num_rows, cols: keys, .. } = block.scores;
        scores.resize(num_rows * keys, T::zero());
        let scale = lit::<T>(s.head_dim as f64).sqrt().recip();
        let (left, right) = ((q, block.rows), (k, block.keys.transposed()));
        matmul((scores, block.scores), left, right, scale, Output::Overwrite)?;
        for (row_idx, row) in scores.chunks_exact_mut(keys).enumerate() {
            let visible = match self.mask {
                Mask::Full => keys,
                Mask::Causal => s.kv_len - s.q_len + block.first_row + row_idx + 1,
            };
            let (seen, hidden) = row.split_at_mut(visible);
            let max = rows::max(seen);
            seen.iter_mut().for_each(|score| *score = (*score - max).exponential());
            let inverse = rows::sum(seen, |score| score).recip();
            seen.iter_mut().for_each(|score| *score *= inverse);
            hidden.fill(T::zero());
        }
        Ok(())
    }

    fn forward<T: Element>(&self, q: &[T], k: &[T], v: &[T], s: Sizes) -> Result<Vec<T>> {
        let mut out = vec![T::zero(); q.len()];
        let mut scores = Vec::new();
        for head in 0..s.batch * s.num_heads {
            let (q_start, kv_start) = s.offsets(head);
            for block in self.blocks(s) {
                let start = q_start + block.first_row * s.head_dim;
                self.probabilities(&q[start..], &k[kv_start..], &mut scores, &block, s)?;
                let (left, right) = ((&scores[..], block.scores), (&v[kv_start..], block.keys));
                matmul((&mut out[start..], block.rows), left, right, T::one(), Output::Overwrite)?;
            }
        }
        Ok(out)
    }

    /// Gradients of `(q, k, v)`. Per block of rows, with probabilities `p` and `g` the gradient of the output:
    /// `dv += p^T g`, `dp = g v^T`, `ds = p (dp - rowsum(p dp))`, `dq = ds k / sqrt(d)`, `dk += ds^T q / sqrt(d)`.
    fn backward<T: Element>(&self, q: &[T], k: &[T], v: &[T], grad: &[T], s: Sizes) -> Result<[Vec<T>; 3]> {
        let mut dq = vec![T::zero(); q.len()];
        let (mut dk, mut dv) = (vec![T::zero(); k.len()], vec![T::zero(); v.len()]);
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        let scale = lit::<T>(s.head_dim as f64).sqrt().recip();
        for head in 0..s.batch * s.num_heads {
            let (q_start, kv_start) = s.offsets(head);
            for block in self.blocks(s) {
                let start = q_start + block.first_row * s.head_dim;
                let (q, k, v) = (&q[start..], &k[kv_start..], &v[kv_start..]);
                let grad = (&grad[start..], block.rows);
                self.probabilities(q, k, &mut p, &block, s)?;
                let transposed = (&p[..], block.scores.transposed());
                matmul((&mut dv[kv_start..], block.keys), transposed, grad, T::one(), Output::Accumulate)?;

                ds.resize(p.len(), T::zero());
                let right = (v, block.keys.transposed());
                matmul((&mut ds, block.scores), grad, right, T::one(), Output::Overwrite)?;
                for (p, ds) in p.chunks_exact(block.scores.cols).zip(ds.chunks_exact_mut(block.scores.cols)) {
                    let dot = rows::dot(p, ds);
                    p.iter().zip(ds).for_each(|(p, ds)| *ds = *p * (*ds - dot));
                }

                let (left, right) = ((&ds[..], block.scores), (k, block.keys));
                matmul((&mut dq[start..], block.rows), left, right, scale, Output::Overwrite)?;
                let (left, right) = ((&ds[..], block.scores.transposed()), (q, block.rows));
                matmul((&mut dk[kv_start..], block.keys), left, right, scale, Output::Accumulate)?;
            }
        }
        Ok([dq, dk, dv])
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
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(ql.dims(), kl.dims(), vl.dims())?;
        let out = dispatch!(q.dtype(), "attention", T => {
            let (q, k, v) = (elements(q, ql)?, elements(k, kl)?, elements(v, vl)?);
            T::to_cpu_storage_owned(self.forward::<T>(q, k, v, sizes)?)
        });
        Ok((out, ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(q.dims(), k.dims(), v.dims())?;
        dispatch!(q.dtype(), "attention", T => {
            let [dq, dk, dv] = with_elements(q, |q| with_elements(k, |k| with_elements(v, |v| {
                with_elements(grad, |grad| self.backward::<T>(q, k, v, grad, sizes))
            })))?;
            let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device()).map(Some);
            Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (q, k) = (random(&[1, 2, 4, 4], 1), random(&[1, 1, 3, 4], 2));
        assert!(attention(&q, &k, &k, Mask::Causal).unwrap_err().to_string().contains("only 3 keys"));
        assert!(attention(&q, &random(&[1, 1, 3, 2], 2), &k, Mask::Full).is_err());
        assert!(attention(&random(&[1, 3, 4, 4], 1), &random(&[1, 2, 4, 4], 2), &k, Mask::Full).is_err());
    }
}
