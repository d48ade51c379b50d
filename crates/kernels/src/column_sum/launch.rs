//! Starts the kernels of `column_sum.cu`.

pub use super::sys::Element;
use super::sys::{ColumnSumParams, tile_columns};
use crate::Rows;
use crate::device::{
    Device, Grid, Kernel, Memory, Slice, SliceMut, check_element, check_sizes, rows_are_aligned,
};
use crate::matmul::Output;
use candle_core::{Result, bail};

/// Fewest rows of a chunk, and of what their number is a multiple: four for each warp.
const MIN_CHUNK_ROWS: usize = 32;
/// Most chunks. More blocks would fill no GPU better, and give the second stage more to read.
const MAX_CHUNKS: usize = 256;

/// Rows whose sums one block makes in the first stage.
pub(crate) fn rows_per_chunk(rows: usize) -> usize {
    rows.div_ceil(MAX_CHUNKS).next_multiple_of(MIN_CHUNK_ROWS).max(MIN_CHUNK_ROWS)
}

/// Floats between the stages: a sum for each chunk of rows and column. `None` if there is no such number.
pub fn partials_len(sizes: Rows) -> Option<usize> {
    sizes.rows.div_ceil(rows_per_chunk(sizes.rows)).checked_mul(sizes.cols)
}

/// Where the gradient of a bias goes: the sum of the columns of a gradient, `(rows, cols)`, that a kernel makes.
pub struct BiasGradient<'a, D: Memory, S> {
    /// Of [`partials_len`] elements; overwritten.
    pub partials: SliceMut<'a, D, D::Full>,
    /// `(cols)`, bf16 or f32.
    pub dbias: SliceMut<'a, D, S>,
    /// What happens to its old content.
    pub output: Output,
}

/// Sums the columns of `x`, `(rows, cols)`, into `to`, `(cols)`. `partials`, of [`partials_len`] elements, is overwritten. Sums
/// are f32, always in the same order, and rounded once.
///
/// # Errors
/// If there are more than 2^31 - 1 rows or columns, a length is not that of the sizes, or the device fails.
pub fn column_sum<D: Device, T: Element, S: Element>(
    device: &D,
    sizes: Rows,
    x: Slice<'_, D, T>,
    partials: SliceMut<'_, D, f32>,
    to: SliceMut<'_, D, S>,
    output: Output,
) -> Result<()> {
    const WHAT: &str = "column_sum";
    check_lens(WHAT, sizes, ("x", x.len()), partials.len())?;
    let rows_per_chunk = rows_per_chunk(sizes.rows);
    let chunks = sizes.rows.div_ceil(rows_per_chunk);
    let tiles = sizes.cols.div_ceil(tile_columns(size_of::<T>()));
    let params = ColumnSumParams {
        from: x.address(),
        to: partials.address(),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_chunk: rows_per_chunk as u32,
        aligned: u32::from(rows_are_aligned::<T>(sizes.cols, &[x.address()])),
        accumulate: 0,
    };
    check_element::<T>(WHAT, x.address())?;
    check_element::<f32>(WHAT, partials.address())?;
    if let Some(grid) = Grid::new(WHAT, chunks, tiles, 1)? {
        // SAFETY: `x` and `partials` have the lengths of the sizes and addresses of their types (checked above): the kernel
        // reads rows and columns below those, writes a row of sums for each chunk, and reads sixteen bytes at once only where
        // every row starts at a multiple of them.
        unsafe { device.launch(T::PARTIAL, grid, &params)? };
    }
    finish(device, sizes, partials.as_slice(), to, output)
}

/// The second stage: sums `partials`, a row for each chunk of `sizes.rows`, into `to`, `(cols)`.
///
/// # Errors
/// As [`column_sum`].
pub(crate) fn finish<D: Device, S: Element>(
    device: &D,
    sizes: Rows,
    partials: Slice<'_, D, f32>,
    to: SliceMut<'_, D, S>,
    output: Output,
) -> Result<()> {
    const WHAT: &str = "column_sum, second stage";
    check_sizes(WHAT, sizes)?;
    if Some(partials.len()) != partials_len(sizes) || to.len() != sizes.cols {
        bail!("{WHAT}: {} partial sums to {} sums: not those of {sizes:?}", partials.len(), to.len());
    }
    check_element::<f32>(WHAT, partials.address())?;
    check_element::<S>(WHAT, to.address())?;
    let chunks = sizes.rows.div_ceil(rows_per_chunk(sizes.rows));
    let params = ColumnSumParams {
        from: partials.address(),
        to: to.address(),
        rows: chunks as u32,
        cols: sizes.cols as u32,
        rows_per_chunk: chunks as u32,
        aligned: u32::from(rows_are_aligned::<f32>(sizes.cols, &[partials.address()])),
        accumulate: u32::from(output == Output::Accumulate),
    };
    let kernel: &Kernel<_> = S::FINISH;
    let tiles = sizes.cols.div_ceil(tile_columns(size_of::<f32>()));
    let Some(grid) = Grid::new(WHAT, 1, tiles, 1)? else { return Ok(()) };
    // SAFETY: `partials` and `to` have the lengths of the sizes and addresses of their types (checked above): the kernel reads
    // rows and columns below those, writes a sum for each column, and reads sixteen bytes at once only where every row starts
    // at a multiple of them.
    unsafe { device.launch(kernel, grid, &params) }
}

/// Refuses sizes that numbers of 32 bits cannot hold, and lengths that are not those of the sizes.
pub(crate) fn check_lens(
    what: &str,
    sizes: Rows,
    (input, len): (&str, usize),
    partials: usize,
) -> Result<()> {
    check_sizes(what, sizes)?;
    if Some(len) != sizes.num_elements() || Some(partials) != partials_len(sizes) {
        bail!(
            "{what}: {input} has {len} elements, and there are {partials} partial sums: not those of {sizes:?}"
        );
    }
    Ok(())
}
