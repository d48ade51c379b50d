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

impl<D: Memory, S> BiasGradient<'_, D, S> {
    /// Refuses sizes that numbers of 32 bits cannot hold, lengths that are not those of the sizes, and addresses that no element
    /// has: all that would fail after the first stage has written.
    pub(crate) fn check(&self, what: &str, sizes: Rows) -> Result<()> {
        check_sizes(what, sizes)?;
        let (partials, sums) = (self.partials.len(), self.dbias.len());
        if Some(partials) != partials_len(sizes) || sums != sizes.cols {
            bail!("{what}: {partials} partial sums to {sums} sums: not those of {sizes:?}");
        }
        check_element::<D::Full>(what, self.partials.address())?;
        check_element::<S>(what, self.dbias.address())?;
        finish_grid(what, sizes)?;
        Ok(())
    }
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
    let gradient = BiasGradient { partials, dbias: to, output };
    check_input(WHAT, sizes, ("x", x.len()))?;
    gradient.check(WHAT, sizes)?;
    let rows_per_chunk = rows_per_chunk(sizes.rows);
    let chunks = sizes.rows.div_ceil(rows_per_chunk);
    let tiles = sizes.cols.div_ceil(tile_columns(size_of::<T>()));
    let params = ColumnSumParams {
        from: x.address(),
        to: gradient.partials.address(),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_chunk: rows_per_chunk as u32,
        aligned: u32::from(rows_are_aligned::<T>(sizes.cols, &[x.address()])),
        accumulate: 0,
    };
    check_element::<T>(WHAT, x.address())?;
    if let Some(grid) = Grid::new(WHAT, chunks, tiles, 1)? {
        // SAFETY: `x` and `partials` have the lengths of the sizes and addresses of their types (checked above): the kernel
        // reads rows and columns below those, writes a row of sums for each chunk, and reads sixteen bytes at once only where
        // every row starts at a multiple of them.
        unsafe { device.launch(T::PARTIAL, grid, &params)? };
    }
    finish(device, sizes, gradient)
}

/// The second stage: sums the partial sums, a row for each chunk of `sizes.rows`, into the gradient, `(cols)`.
///
/// # Errors
/// As [`BiasGradient::check`], which belongs before the first stage; or if the device fails.
pub(crate) fn finish<D: Device, S: Element>(
    device: &D,
    sizes: Rows,
    gradient: BiasGradient<'_, D, S>,
) -> Result<()> {
    const WHAT: &str = "column_sum, second stage";
    gradient.check(WHAT, sizes)?;
    let BiasGradient { partials, dbias, output } = gradient;
    let chunks = sizes.rows.div_ceil(rows_per_chunk(sizes.rows));
    let params = ColumnSumParams {
        from: partials.address(),
        to: dbias.address(),
        rows: chunks as u32,
        cols: sizes.cols as u32,
        rows_per_chunk: chunks as u32,
        aligned: u32::from(rows_are_aligned::<f32>(sizes.cols, &[partials.address()])),
        accumulate: u32::from(output == Output::Accumulate),
    };
    let kernel: &Kernel<_> = S::FINISH;
    let Some(grid) = finish_grid(WHAT, sizes)? else { return Ok(()) };
    // SAFETY: `partials` and `dbias` have the lengths of the sizes and addresses of their types (checked above): the kernel reads
    // rows and columns below those, writes a sum for each column, and reads sixteen bytes at once only where every row starts
    // at a multiple of them.
    unsafe { device.launch(kernel, grid, &params) }
}

/// A block for each tile of columns.
fn finish_grid(what: &str, sizes: Rows) -> Result<Option<Grid>> {
    Grid::new(what, 1, sizes.cols.div_ceil(tile_columns(size_of::<f32>())), 1)
}

/// Refuses sizes that numbers of 32 bits cannot hold, and a matrix of another length.
pub(crate) fn check_input(what: &str, sizes: Rows, (input, len): (&str, usize)) -> Result<()> {
    check_sizes(what, sizes)?;
    if Some(len) != sizes.num_elements() {
        bail!("{what}: {input} has {len} elements: not those of {sizes:?}");
    }
    Ok(())
}
