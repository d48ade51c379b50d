//! Starts the kernel of `gather_rows.cu`.

use super::sys::{GATHER_ROWS, GatherRowsParams, ROWS};
use crate::Rows;
use crate::device::{Device, Grid, Slice, SliceMut, check_element, check_sizes, num_rows, rows_are_aligned};
use candle_core::{Result, bail};
use half::bf16;

/// Makes row `r` of `to`, `(indices.len(), cols)`, row `indices[r]` of `from`, `(_, cols)`, or zeros where that is negative. `to`
/// is written whole. An index beyond `from` takes its last row, or zeros of none; that there is none such is for the host to check,
/// with [`check_indices`](super::check_indices), before they go to the device.
///
/// # Errors
/// If there are more than 2^31 - 1 rows or columns, a length is not that of the sizes, or the device fails.
pub fn gather_rows<D: Device>(
    device: &D,
    cols: usize,
    from: Slice<'_, D, bf16>,
    indices: Slice<'_, D, i32>,
    to: SliceMut<'_, D, bf16>,
) -> Result<()> {
    const WHAT: &str = "gather_rows";
    let from_rows = num_rows(WHAT, "the matrix", from.len(), cols)?;
    let sizes = Rows { rows: indices.len(), cols };
    check_sizes(WHAT, sizes)?;
    if Some(to.len()) != sizes.num_elements() {
        bail!("{WHAT}: the output has {} elements: not those of {sizes:?}", to.len());
    }
    let addresses = [from.address(), to.address()];
    check_element::<bf16>(WHAT, addresses[0])?;
    check_element::<bf16>(WHAT, addresses[1])?;
    check_element::<i32>(WHAT, indices.address())?;
    let params = GatherRowsParams {
        from: from.address(),
        indices: indices.address(),
        to: to.address(),
        from_rows: from_rows as u32,
        rows: sizes.rows as u32,
        cols: cols as u32,
        aligned: u32::from(rows_are_aligned::<bf16>(cols, &addresses)),
    };
    if cols == 0 {
        return Ok(());
    }
    let Some(grid) = Grid::new(WHAT, sizes.rows.div_ceil(ROWS), 1, 1)? else { return Ok(()) };
    // SAFETY: `from` has `from_rows` rows, `to` one for each of `indices`, and all have addresses of their types (checked
    // above): the kernel reads one row of `from`, or none, for each row of `to`, which it writes, and moves indices into
    // `from`. It touches sixteen bytes at once only where every row starts at a multiple of them.
    unsafe { device.launch(&GATHER_ROWS, grid, &params) }
}
