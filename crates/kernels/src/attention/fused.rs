//! Attention on the rows of a fused projection, `(rows, (num_heads + 2 * num_kv_heads) * head_dim)`: queries, then keys, then
//! values. Batch entries follow each other; each has as many keys as queries.

use super::launch::{self, Backward, Forward, Operand, OperandMut};
use super::shape::{Sequences, Shape};
use super::sys::Strides;
use crate::device::{Device, Memory, Slice, SliceMut};
use candle_core::{Result, bail};

/// What [`forward_fused`] reads and writes.
pub struct FusedForward<'a, D: Memory> {
    /// Queries, keys and values.
    pub qkv: Slice<'a, D, D::Half>,
    /// For packed sequences, their boundaries in the memory of the device: those of the shape.
    pub cu_seqlens: Option<Slice<'a, D, i32>>,
    /// The result, `(rows, num_heads * head_dim)`; written whole.
    pub out: SliceMut<'a, D, D::Half>,
    /// The logarithm of the sum of each row's exponentials, `(batch, heads, queries)`; written whole.
    pub lse: SliceMut<'a, D, D::Full>,
}

/// What [`backward_fused`] reads and writes.
pub struct FusedBackward<'a, D: Memory> {
    /// Queries, keys and values.
    pub qkv: Slice<'a, D, D::Half>,
    /// For packed sequences, their boundaries in the memory of the device: those of the shape.
    pub cu_seqlens: Option<Slice<'a, D, i32>>,
    /// The result of [`forward_fused`].
    pub out: Slice<'a, D, D::Half>,
    /// The log-sum-exp of [`forward_fused`].
    pub lse: Slice<'a, D, D::Full>,
    /// The gradient of the result.
    pub dout: Slice<'a, D, D::Half>,
    /// The gradient of queries, keys and values; written whole.
    pub dqkv: SliceMut<'a, D, D::Half>,
    /// [`backward_workspace_len`](super::backward_workspace_len) numbers, 16 bytes aligned.
    pub workspace: SliceMut<'a, D, D::Full>,
}

/// Where queries, keys and values are in a row, and where rows lie.
pub(crate) struct Layout {
    /// Elements of all rows.
    pub(crate) len: usize,
    /// Elements of all rows of the result.
    pub(crate) out_len: usize,
    /// Where a row's keys begin, and its values.
    pub(crate) starts: [usize; 2],
    pub(crate) strides: Strides,
    pub(crate) out_strides: Strides,
}

impl Layout {
    /// Refuses shapes with other keys than queries, and lengths that are not those of the shape.
    pub(crate) fn new(shape: &Shape, qkv: usize, out: usize) -> Result<Self> {
        shape.check()?;
        if let Sequences::Batch { q_len, kv_len, .. } = shape.sequences
            && q_len != kv_len
        {
            bail!("fused attention: {q_len} queries and {kv_len} keys are not in the same rows");
        }
        let heads = shape.num_kv_heads.checked_mul(2).and_then(|heads| heads.checked_add(shape.num_heads));
        let cols = heads.and_then(|heads| heads.checked_mul(shape.head_dim));
        let rows = shape.batch().checked_mul(shape.q_rows());
        // An entry has to be counted where there is none, too: its length is a stride.
        let is_counted = |cols: usize, rows: usize| {
            let len = cols.checked_mul(rows.max(shape.q_rows()));
            len.is_some_and(|len| i64::try_from(len).is_ok())
        };
        let Some((cols, rows)) = cols.zip(rows).filter(|(cols, rows)| is_counted(*cols, *rows)) else {
            bail!("fused attention: {shape:?} is too large")
        };
        let (q_cols, kv_cols) = (shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim);
        let strides = |cols: usize| {
            let [batch, head, row] = [shape.q_rows() * cols, shape.head_dim, cols].map(|n| n as i64);
            Strides { batch, head, row }
        };
        let layout = Self {
            len: rows * cols,
            out_len: rows * q_cols,
            starts: [q_cols, q_cols + kv_cols],
            strides: strides(cols),
            out_strides: strides(q_cols),
        };
        if (qkv, out) != (layout.len, layout.out_len) {
            let (expected, of_out) = (layout.len, layout.out_len);
            bail!(
                "fused attention: projections of {qkv} and results of {out} elements, not {expected} and {of_out}"
            );
        }
        Ok(layout)
    }

    /// Queries, keys and values of a fused projection.
    fn operands<'a, D: Memory>(&self, qkv: Slice<'a, D, D::Half>) -> [Operand<'a, D>; 3] {
        let [keys, values] = self.starts;
        [0, keys, values]
            .map(|start| Operand { data: qkv.range(start.min(qkv.len())..qkv.len()), strides: self.strides })
    }
}

/// [`forward`](super::forward) of the parts of a fused projection.
///
/// # Errors
/// As [`forward`](super::forward); or if a length is not that of the shape.
pub fn forward_fused<D: Device>(device: &D, shape: &Shape, args: FusedForward<'_, D>) -> Result<()> {
    let FusedForward { qkv, cu_seqlens, out, lse } = args;
    let layout = Layout::new(shape, qkv.len(), out.len())?;
    let [q, k, v] = layout.operands(qkv);
    let out = OperandMut { data: out, strides: layout.out_strides };
    launch::forward(device, shape, Forward { q, k, v, cu_seqlens, out, lse })
}

/// [`backward`](super::backward) of the parts of a fused projection, to a gradient of the same layout.
///
/// # Errors
/// As [`backward`](super::backward); or if a length is not that of the shape.
pub fn backward_fused<D: Device>(device: &D, shape: &Shape, args: FusedBackward<'_, D>) -> Result<()> {
    let FusedBackward { qkv, cu_seqlens, out, lse, dout, dqkv, workspace } = args;
    let layout = Layout::new(shape, qkv.len(), out.len())?;
    Layout::new(shape, dqkv.len(), dout.len())?;
    let [q, k, v] = layout.operands(qkv);
    let out_strides = layout.out_strides;
    let [keys, values] = layout.starts;
    let part = |start: usize| {
        let start = start.min(dqkv.len());
        // SAFETY: elements of `dqkv`, which nothing else reaches while this runs. The three share addresses but no element: rows
        // of one begin `start` elements after those of the first, and end before those of the next begin; kernels write
        // nothing that the strides do not address.
        let data = unsafe {
            SliceMut::from_raw(dqkv.address() + (start * size_of::<D::Half>()) as u64, dqkv.len() - start)
        };
        OperandMut { data, strides: layout.strides }
    };
    let (dq, dk, dv) = (part(0), part(keys), part(values));
    let operand = |data| Operand { data, strides: out_strides };
    let (out, dout) = (operand(out), operand(dout));
    launch::backward(device, shape, Backward { q, k, v, cu_seqlens, out, lse, dout, dq, dk, dv, workspace })
}
