//! Starts the kernels of `rope.cu`.

use super::sys::{BACKWARD, FORWARD, RopeParams, TILE, UNIT};
use crate::Rows;
use crate::column_sum::launch::{BiasGradient, Element, finish, rows_per_chunk};
use crate::device::{ALIGNMENT, Device, Grid, Kernel, Memory, Slice, SliceMut, check_element, check_sizes};
use candle_core::{Result, bail};
use half::bf16;

/// Sizes of fused queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qkv {
    /// Tokens.
    pub rows: usize,
    /// Query heads, which come first in a row.
    pub num_heads: usize,
    /// Key heads, which follow, and as many value heads at the end.
    pub num_kv_heads: usize,
    /// Elements of a head; even, and not 0.
    pub head_dim: usize,
}

impl Qkv {
    /// The matrix that they are, `(rows, (num_heads + 2 * num_kv_heads) * head_dim)`. `None` if there is no such number of
    /// columns.
    pub fn sizes(&self) -> Option<Rows> {
        let heads = self.num_kv_heads.checked_mul(2)?.checked_add(self.num_heads)?;
        Some(Rows { rows: self.rows, cols: heads.checked_mul(self.head_dim)? })
    }
}

/// Where the rows are in their sequences, and what angles that means.
pub struct Angles<'a, D: Memory> {
    /// `(rows)`: what [`positions`](super::positions) makes. One beyond the tables takes their last row; that there is none such is
    /// for the host to check, with [`check_positions`](super::check_positions), before they go to the device.
    pub positions: Slice<'a, D, i32>,
    /// `(num_positions, head_dim / 2)`, of [`RopeTables::cos_sin`](super::RopeTables::cos_sin).
    pub cos: Slice<'a, D, D::Full>,
    /// As `cos`.
    pub sin: Slice<'a, D, D::Full>,
}

/// Adds `bias`, a row of `qkv`, to every row of `qkv`, `(rows, (num_heads + 2 * num_kv_heads) * head_dim)`, and rotates its queries
/// and keys, in place. Computed in f32 and rounded once.
///
/// # Errors
/// If `head_dim` is odd or 0, there are no positions in the tables or more than 2^31 - 1 of them, of rows or of columns, a length is
/// not that of the sizes, or the device fails.
pub fn forward<D: Device>(
    device: &D,
    sizes: Qkv,
    qkv: SliceMut<'_, D, bf16>,
    bias: Option<Slice<'_, D, bf16>>,
    angles: Angles<'_, D>,
) -> Result<()> {
    const WHAT: &str = "rope";
    let cols = check_on_device(WHAT, sizes, qkv.address(), qkv.len(), &angles)?.cols;
    if let Some(bias) = bias
        && bias.len() != cols
    {
        bail!("{WHAT}: the bias has {} elements: not those of a row of {sizes:?}", bias.len());
    }
    let bias_address = bias.map_or(0, |bias| bias.address());
    check_element::<bf16>(WHAT, bias_address)?;
    let heads = if bias.is_some() { sizes.num_heads + 2 * sizes.num_kv_heads } else { rotated_heads(sizes) };
    let params = params(sizes, (&qkv, bias_address), &angles, (0, heads));
    // SAFETY: `bias` is absent or a row of elements of its type (checked above); `qkv` and `angles` were checked with the
    // sizes, and there are no partial sums, which the kernel does not touch.
    unsafe { launch(WHAT, device, &FORWARD, &params) }
}

/// The gradients of [`forward`]: overwrites `dqkv`, the gradient of its result, by that of its input, and sums it over the rows,
/// in f32, before it is rounded and always in the same order, into that of the bias, a row of the matrix.
///
/// # Errors
/// As [`forward`].
pub fn backward<D: Device, S: Element>(
    device: &D,
    sizes: Qkv,
    dqkv: SliceMut<'_, D, bf16>,
    angles: Angles<'_, D>,
    bias: Option<BiasGradient<'_, D, S>>,
) -> Result<()> {
    const WHAT: &str = "rope backward";
    let matrix = check_on_device(WHAT, sizes, dqkv.address(), dqkv.len(), &angles)?;
    let Some(gradient) = bias else {
        let params = params(sizes, (&dqkv, 0), &angles, (0, rotated_heads(sizes)));
        // SAFETY: `dqkv` and `angles` were checked with the sizes; there is neither a bias nor partial sums, which the kernel
        // does not touch.
        return unsafe { launch(WHAT, device, &BACKWARD, &params) };
    };
    gradient.check(WHAT, matrix)?;
    let heads = sizes.num_heads + 2 * sizes.num_kv_heads;
    let params = params(sizes, (&dqkv, 0), &angles, (gradient.partials.address(), heads));
    // SAFETY: the partial sums hold a row of f32 for each chunk of rows (checked above), which is what the kernel writes of them;
    // `dqkv` and `angles` were checked with the sizes, and there is no bias.
    unsafe { launch(WHAT, device, &BACKWARD, &params)? };
    finish(device, matrix, gradient)
}

fn rotated_heads(sizes: Qkv) -> usize {
    sizes.num_heads + sizes.num_kv_heads
}

/// Refuses what [`check`] does, and addresses that no element has.
fn check_on_device<D: Memory>(
    what: &str,
    sizes: Qkv,
    address: u64,
    len: usize,
    angles: &Angles<'_, D>,
) -> Result<Rows> {
    let Angles { positions, cos, sin } = angles;
    let (matrix, _) = check(what, sizes, len, positions.len(), [cos.len(), sin.len()])?;
    check_element::<D::Half>(what, address)?;
    check_element::<i32>(what, positions.address())?;
    check_element::<D::Full>(what, cos.address())?;
    check_element::<D::Full>(what, sin.address())?;
    Ok(matrix)
}

/// Refuses sizes and lengths that do not fit: of the matrix, the positions, the cosines and the sines. Returns the sizes of the
/// matrix, and how many positions the tables have.
pub(super) fn check(
    what: &str,
    sizes: Qkv,
    len: usize,
    positions: usize,
    tables: [usize; 2],
) -> Result<(Rows, usize)> {
    let matrix = sizes.sizes().filter(|matrix| Some(len) == matrix.num_elements());
    let Some(matrix) = matrix else {
        bail!("{what}: the matrix has {len} elements: not those of {sizes:?}");
    };
    check_sizes(what, matrix)?;
    if sizes.num_heads.max(sizes.num_kv_heads) > i32::MAX as usize / 4 {
        bail!("{what}: there are too many heads: {sizes:?}");
    }
    let half = sizes.head_dim / 2;
    if half == 0 || !sizes.head_dim.is_multiple_of(2) {
        bail!("{what}: a rotation takes pairs, head_dim is {}", sizes.head_dim);
    }
    if positions != sizes.rows {
        bail!("{what}: there are {positions} positions for the rows of {sizes:?}");
    }
    let num_positions = tables[0] / half;
    if tables[0] != tables[1] || num_positions * half != tables[0] {
        bail!("{what}: cosines and sines have {tables:?} elements, not {half} for each position");
    }
    if (len > 0 && num_positions == 0) || num_positions > i32::MAX as usize {
        bail!("{what}: tables of {num_positions} positions: not 1 to {}", i32::MAX);
    }
    Ok((matrix, num_positions))
}

fn params<D: Device>(
    sizes: Qkv,
    (qkv, bias): (&SliceMut<'_, D, bf16>, u64),
    angles: &Angles<'_, D>,
    (partials, heads): (u64, usize),
) -> RopeParams {
    let half = sizes.head_dim / 2;
    let Angles { positions, cos, sin } = angles;
    let is_aligned = |address: u64| address.is_multiple_of(ALIGNMENT);
    let aligned = half.is_multiple_of(UNIT)
        && [qkv.address(), bias, cos.address(), sin.address()].into_iter().all(is_aligned);
    RopeParams {
        x: qkv.address(),
        bias,
        positions: positions.address(),
        cos: cos.address(),
        sin: sin.address(),
        partials,
        rows: sizes.rows as u32,
        rows_per_chunk: rows_per_chunk(sizes.rows) as u32,
        rotated_heads: rotated_heads(sizes) as u32,
        heads: heads as u32,
        half: half as u32,
        cols: ((sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim) as u32,
        num_positions: (cos.len() / half) as u32,
        aligned: u32::from(aligned),
    }
}

/// Starts a kernel with a block for each chunk of rows and 32 units of heads.
///
/// # Safety
/// `params` was made by [`params`] of what [`check`] took, and its bias and partial sums are what the kernel expects.
unsafe fn launch<D: Device>(
    what: &str,
    device: &D,
    kernel: &Kernel<RopeParams>,
    params: &RopeParams,
) -> Result<()> {
    let chunks = (params.rows as usize).div_ceil(params.rows_per_chunk as usize);
    let units = params.heads as usize * (params.half as usize).div_ceil(UNIT);
    let Some(grid) = Grid::new(what, chunks, units.div_ceil(TILE), 1)? else { return Ok(()) };
    // SAFETY: rows, columns and positions are those of the lengths (`check`), and the kernel goes beyond none of them: it reads
    // and writes rows below `rows`, heads below `heads` and pairs below `half`, moves positions into the tables, and touches
    // sixteen bytes at once only where every half of a head starts at a multiple of them. The rest is the caller's promise.
    unsafe { device.launch(kernel, grid, params) }
}
