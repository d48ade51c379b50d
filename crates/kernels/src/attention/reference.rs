//! Attention on the CPU in f32 or f64: what candle programs without a GPU run, and what the kernels are held against.

use super::shape::{Mask, Sequence, Shape};
use super::sys::Strides;
use crate::element::{Element, lit};
use crate::matmul::{Matrix, Output, matmul};
use crate::rows;
use candle_core::{Result, bail};

/// Query rows handled at once; under a causal mask the keys after them are not even multiplied.
pub(super) const BLOCK_ROWS: usize = 64;

/// A tensor to read.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a, T> {
    /// Its elements, from the first on.
    pub data: &'a [T],
    /// Where rows lie.
    pub strides: Strides,
}

/// A tensor to write.
#[derive(Debug)]
pub struct OperandMut<'a, T> {
    /// Its elements, from the first on.
    pub data: &'a mut [T],
    /// Where rows lie.
    pub strides: Strides,
}

/// Where head `head` of a sequence begins.
fn offset(strides: Strides, head: usize, sequence: Sequence) -> usize {
    let Strides { batch, head: head_stride, row } = strides;
    (sequence.batch as i64 * batch + head as i64 * head_stride + sequence.start as i64 * row) as usize
}

/// One block of query rows of one head.
struct Block {
    first_row: usize,
    rows: usize,
    /// Keys that any of its rows sees.
    keys: usize,
    sequence: Sequence,
    head: usize,
    kv_head: usize,
}

impl Block {
    /// This block's rows of a tensor with a row for each query.
    fn of_queries<'a, T>(&self, tensor: Operand<'a, T>, head_dim: usize) -> (&'a [T], Matrix) {
        let start =
            offset(tensor.strides, self.head, self.sequence) + self.first_row * tensor.strides.row as usize;
        (&tensor.data[start..], Matrix::row_major(self.rows, head_dim, tensor.strides.row as usize))
    }

    /// The keys this block sees of a tensor with a row for each key.
    fn of_keys<'a, T>(&self, tensor: Operand<'a, T>, head_dim: usize) -> (&'a [T], Matrix) {
        let start = offset(tensor.strides, self.kv_head, self.sequence);
        (&tensor.data[start..], Matrix::row_major(self.keys, head_dim, tensor.strides.row as usize))
    }

    fn of_queries_mut<'a, T>(
        &self,
        tensor: &'a mut OperandMut<'_, T>,
        head_dim: usize,
    ) -> (&'a mut [T], Matrix) {
        let stride = tensor.strides.row as usize;
        let start = offset(tensor.strides, self.head, self.sequence) + self.first_row * stride;
        (&mut tensor.data[start..], Matrix::row_major(self.rows, head_dim, stride))
    }

    fn of_keys_mut<'a, T>(
        &self,
        tensor: &'a mut OperandMut<'_, T>,
        head_dim: usize,
    ) -> (&'a mut [T], Matrix) {
        let stride = tensor.strides.row as usize;
        let start = offset(tensor.strides, self.kv_head, self.sequence);
        (&mut tensor.data[start..], Matrix::row_major(self.keys, head_dim, stride))
    }

    fn scores(&self) -> Matrix {
        Matrix::row_major(self.rows, self.keys, self.keys)
    }

    /// How many keys row `row` of the block sees.
    fn visible(&self, mask: Mask, row: usize) -> usize {
        match mask {
            Mask::Full => self.keys,
            Mask::Causal => self.sequence.kv_len - self.sequence.q_len + self.first_row + row + 1,
        }
    }
}

fn blocks(shape: &Shape) -> impl Iterator<Item = Block> {
    let (mask, group) = (shape.mask, shape.group());
    shape.each_sequence().into_iter().flat_map(move |sequence| {
        (0..shape.num_heads).flat_map(move |head| {
            (0..sequence.q_len).step_by(BLOCK_ROWS).map(move |first_row| {
                let rows = BLOCK_ROWS.min(sequence.q_len - first_row);
                let keys = match mask {
                    Mask::Full => sequence.kv_len,
                    Mask::Causal => sequence.kv_len - sequence.q_len + first_row + rows,
                };
                Block { first_row, rows, keys, sequence, head, kv_head: head / group }
            })
        })
    })
}

/// Probabilities of one block of rows, into `scores`. Gives `lse` the logarithm of the sum of each row's exponentials.
fn probabilities<T: Element>(
    shape: &Shape,
    block: &Block,
    (q, k): (Operand<'_, T>, Operand<'_, T>),
    scores: &mut Vec<T>,
    mut lse: impl FnMut(usize, T),
) -> Result<()> {
    scores.resize(block.rows * block.keys, T::zero());
    let (keys, key_shape) = block.of_keys(k, shape.head_dim);
    let right = (keys, key_shape.transposed());
    let left = block.of_queries(q, shape.head_dim);
    matmul((scores, block.scores()), left, right, lit(shape.scale), Output::Overwrite)?;
    for (row_idx, row) in scores.chunks_exact_mut(block.keys).enumerate() {
        let (seen, hidden) = row.split_at_mut(block.visible(shape.mask, row_idx));
        let max = rows::max(seen);
        seen.iter_mut().for_each(|score| *score = (*score - max).exponential());
        let sum = rows::sum(seen, |score| score);
        let inverse = sum.recip();
        seen.iter_mut().for_each(|score| *score *= inverse);
        hidden.fill(T::zero());
        lse(row_idx, max + sum.ln());
    }
    Ok(())
}

fn check_operands<T>(shape: &Shape, operands: [(&str, Operand<'_, T>, bool); 3]) -> Result<()> {
    shape.check()?;
    for (what, operand, is_query) in operands {
        let rows = if is_query { shape.q_rows() } else { shape.kv_rows() };
        let heads = if is_query { shape.num_heads } else { shape.num_kv_heads };
        shape.check_extent(what, (heads, rows), operand.strides, operand.data.len())?;
    }
    Ok(())
}

/// `softmax(scale q k^T) v` into `out`, and the log-sum-exp of each row's scores into `lse`, `(batch, heads, queries)`,
/// where it is wanted. A query without keys gets zeros and minus infinity.
///
/// # Errors
/// If a tensor is shorter than the shape, or rows of `out` overlap.
pub fn forward<T: Element>(
    shape: &Shape,
    [q, k, v]: [Operand<'_, T>; 3],
    mut out: OperandMut<'_, T>,
    mut lse: Option<&mut [T]>,
) -> Result<()> {
    check_operands(shape, [("q", q, true), ("k", k, false), ("v", v, false)])?;
    shape.check_output("out", (shape.num_heads, shape.q_rows()), out.strides, out.data.len())?;
    if let Some(lse) = &lse
        && lse.len() != shape.num_query_rows()?
    {
        bail!("attention: lse has {} numbers, there are {} rows", lse.len(), shape.num_query_rows()?);
    }
    let mut scores = Vec::new();
    for block in blocks(shape) {
        let entry_row = (block.sequence.batch * shape.num_heads + block.head) * shape.q_rows();
        let first_row = entry_row + block.sequence.start + block.first_row;
        if block.keys == 0 {
            let (data, matrix) = block.of_queries_mut(&mut out, shape.head_dim);
            data.chunks_mut(matrix.row_stride)
                .take(matrix.rows)
                .for_each(|row| row[..matrix.cols].fill(T::zero()));
            if let Some(lse) = &mut lse {
                lse[first_row..first_row + block.rows].fill(T::neg_infinity());
            }
            continue;
        }
        probabilities(shape, &block, (q, k), &mut scores, |row, value| {
            if let Some(lse) = &mut lse {
                lse[first_row + row] = value;
            }
        })?;
        let left = (&scores[..], block.scores());
        let values = block.of_keys(v, shape.head_dim);
        matmul(block.of_queries_mut(&mut out, shape.head_dim), left, values, T::one(), Output::Overwrite)?;
    }
    Ok(())
}

/// Gradients of `q`, `k` and `v` from that of the output, each written whole.
///
/// Per block of rows, with probabilities `p`: `dv += p^T dout`, `dp = dout v^T`, `ds = p (dp - rowsum(p dp))`,
/// `dq = scale ds k`, `dk += scale ds^T q`.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(
    shape: &Shape,
    [q, k, v]: [Operand<'_, T>; 3],
    dout: Operand<'_, T>,
    [mut dq, mut dk, mut dv]: [OperandMut<'_, T>; 3],
) -> Result<()> {
    check_operands(shape, [("q", q, true), ("k", k, false), ("v", v, false)])?;
    shape.check_extent("dout", (shape.num_heads, shape.q_rows()), dout.strides, dout.data.len())?;
    shape.check_output("dq", (shape.num_heads, shape.q_rows()), dq.strides, dq.data.len())?;
    for (what, gradient) in [("dk", &mut dk), ("dv", &mut dv)] {
        let (heads, rows) = (shape.num_kv_heads, shape.kv_rows());
        shape.check_output(what, (heads, rows), gradient.strides, gradient.data.len())?;
        for index in 0..shape.batch() * heads * rows {
            let (entry, head, row) = (index / (heads * rows), index / rows % heads, index % rows);
            let Strides { batch, head: head_stride, row: row_stride } = gradient.strides;
            let start = entry as i64 * batch + head as i64 * head_stride + row as i64 * row_stride;
            gradient.data[start as usize..][..shape.head_dim].fill(T::zero());
        }
    }
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    let scale = lit(shape.scale);
    for block in blocks(shape) {
        if block.keys == 0 {
            let (data, matrix) = block.of_queries_mut(&mut dq, shape.head_dim);
            data.chunks_mut(matrix.row_stride)
                .take(matrix.rows)
                .for_each(|row| row[..matrix.cols].fill(T::zero()));
            continue;
        }
        probabilities(shape, &block, (q, k), &mut p, |_, _| ())?;
        let scores = block.scores();
        let dout = block.of_queries(dout, shape.head_dim);
        let dv = block.of_keys_mut(&mut dv, shape.head_dim);
        matmul(dv, (&p, scores.transposed()), dout, T::one(), Output::Accumulate)?;

        ds.resize(p.len(), T::zero());
        let (values, value_shape) = block.of_keys(v, shape.head_dim);
        matmul((&mut ds, scores), dout, (values, value_shape.transposed()), T::one(), Output::Overwrite)?;
        for (p, ds) in p.chunks_exact(block.keys).zip(ds.chunks_exact_mut(block.keys)) {
            let dot = rows::dot(p, ds);
            p.iter().zip(ds).for_each(|(p, ds)| *ds = *p * (*ds - dot));
        }

        let dq = block.of_queries_mut(&mut dq, shape.head_dim);
        matmul(dq, (&ds, scores), block.of_keys(k, shape.head_dim), scale, Output::Overwrite)?;
        let dk = block.of_keys_mut(&mut dk, shape.head_dim);
        let queries = block.of_queries(q, shape.head_dim);
        matmul(dk, (&ds, scores.transposed()), queries, scale, Output::Accumulate)?;
    }
    Ok(())
}
