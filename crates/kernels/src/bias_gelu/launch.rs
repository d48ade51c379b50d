//! Starts the kernels of `bias_gelu.cu`.

use super::Gelu;
use super::sys::{self, BiasGeluParams};
use crate::Rows;
use crate::column_sum::launch::{BiasGradient, Element, finish, rows_per_chunk};
use crate::column_sum::sys::tile_columns;
use crate::device::{Device, Grid, Slice, SliceMut, check_element, check_sizes, rows_are_aligned};
use candle_core::{Result, bail};
use half::bf16;

/// `y = gelu(x + bias)`. `x` and `y`: `(rows, cols)`, `bias`: `(cols)`. `y` is written whole. Computed in f32 and rounded once.
///
/// # Errors
/// If there are more than 2^31 - 1 rows or columns, a length is not that of the sizes, or the device fails.
pub fn forward<D: Device>(
    device: &D,
    sizes: Rows,
    kind: Gelu,
    x: Slice<'_, D, bf16>,
    bias: Slice<'_, D, bf16>,
    y: SliceMut<'_, D, bf16>,
) -> Result<()> {
    const WHAT: &str = "bias_gelu";
    check_sizes(WHAT, sizes)?;
    let lens = [x.len(), y.len()];
    if lens.iter().any(|len| Some(*len) != sizes.num_elements()) || bias.len() != sizes.cols {
        bail!("{WHAT}: x and y have {lens:?} elements, the bias {}: not those of {sizes:?}", bias.len());
    }
    let addresses = [x.address(), bias.address(), y.address()];
    for address in addresses {
        check_element::<bf16>(WHAT, address)?;
    }
    let Some(grid) = grid(WHAT, sizes)? else { return Ok(()) };
    let params = BiasGeluParams {
        x: x.address(),
        bias: bias.address(),
        dy: 0,
        to: y.address(),
        partials: 0,
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_chunk: rows_per_chunk(sizes.rows) as u32,
        aligned: u32::from(rows_are_aligned::<bf16>(sizes.cols, &addresses)),
    };
    // SAFETY: `x`, `bias` and `y` have the lengths of the sizes and addresses of their type (checked above): the kernel reads
    // and writes rows and columns below those, sixteen bytes at once only where every row starts at a multiple of them. It
    // touches neither `dy` nor `partials`.
    unsafe { device.launch(sys::forward(kind), grid, &params) }
}

/// The gradients of [`forward`]: `dx`, `(rows, cols)`, which is written whole, and that of the bias, `(cols)`, from `dy`,
/// `(rows, cols)`. That of the bias is summed in f32 before `dx` is rounded, always in the same order.
///
/// # Errors
/// As [`forward`].
pub fn backward<D: Device, S: Element>(
    device: &D,
    sizes: Rows,
    kind: Gelu,
    (x, bias, dy): (Slice<'_, D, bf16>, Slice<'_, D, bf16>, Slice<'_, D, bf16>),
    dx: SliceMut<'_, D, bf16>,
    gradient: BiasGradient<'_, D, S>,
) -> Result<()> {
    const WHAT: &str = "bias_gelu backward";
    check_sizes(WHAT, sizes)?;
    let lens = [x.len(), dy.len(), dx.len()];
    if lens.iter().any(|len| Some(*len) != sizes.num_elements()) || bias.len() != sizes.cols {
        bail!("{WHAT}: x, dy and dx have {lens:?} elements, the bias {}: not those of {sizes:?}", bias.len());
    }
    gradient.check(WHAT, sizes)?;
    let addresses = [x.address(), bias.address(), dy.address(), dx.address()];
    for address in addresses {
        check_element::<bf16>(WHAT, address)?;
    }
    let params = BiasGeluParams {
        x: x.address(),
        bias: bias.address(),
        dy: dy.address(),
        to: dx.address(),
        partials: gradient.partials.address(),
        rows: sizes.rows as u32,
        cols: sizes.cols as u32,
        rows_per_chunk: rows_per_chunk(sizes.rows) as u32,
        aligned: u32::from(rows_are_aligned::<bf16>(sizes.cols, &addresses)),
    };
    if let Some(grid) = grid(WHAT, sizes)? {
        // SAFETY: `x`, `bias`, `dy`, `dx` and the partial sums have the lengths of the sizes and addresses of their types (checked
        // above): the kernel reads and writes rows and columns below those, sixteen bytes at once only where every row starts
        // at a multiple of them, and a row of sums for each chunk.
        unsafe { device.launch(sys::backward(kind), grid, &params)? };
    }
    finish(device, sizes, gradient)
}

/// A block for each chunk of rows and tile of columns.
fn grid(what: &str, sizes: Rows) -> Result<Option<Grid>> {
    let chunks = sizes.rows.div_ceil(rows_per_chunk(sizes.rows));
    Grid::new(what, chunks, sizes.cols.div_ceil(tile_columns(size_of::<bf16>())), 1)
}
