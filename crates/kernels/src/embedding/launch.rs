//! Starts the kernels of `embedding.cu`.

use super::sys::{BACKWARD, EmbeddingBackward, EmbeddingForward, FORWARD, TILE};
use crate::Rows;
use crate::device::{
    Device, Grid, Memory, Slice, SliceMut, check_element, check_sizes, num_rows, rows_are_aligned,
};
use crate::gather_rows::sys::ROWS;
use candle_core::{Result, bail};
use half::bf16;

/// What [`forward`] takes rows of.
#[derive(Clone, Copy)]
pub struct Embeddings<'a, D: Memory> {
    /// `(vocab, hidden)`.
    pub table: Slice<'a, D, D::Half>,
    /// `(_, hidden)`; may be empty.
    pub visual: Slice<'a, D, D::Half>,
}

/// The rows of every token, of [`Buckets`](super::Buckets).
#[derive(Clone, Copy)]
pub struct DeviceBuckets<'a, D> {
    /// Tokens, each once: two buckets of one token would be added to one row at a time.
    pub ids: Slice<'a, D, i32>,
    /// Where the rows of each begin, and the end; one more than there are ids.
    pub starts: Slice<'a, D, i32>,
    /// The rows.
    pub rows: Slice<'a, D, i32>,
}

/// Makes row `r` of `to`, `(sources.len(), hidden)`, the embedding of the token `sources[r]`, or the visual feature `-1 -
/// sources[r]` where that is negative. `to` is written whole. What is not there takes the last row, or zeros of none; that nothing
/// is missing is for the host to check, with [`check_sources`](super::check_sources), before the sources go to the device.
///
/// # Errors
/// If there are more than 2^31 - 1 rows or columns, a length is not that of the sizes, or the device fails.
pub fn forward<D: Device>(
    device: &D,
    hidden: usize,
    from: Embeddings<'_, D>,
    sources: Slice<'_, D, i32>,
    to: SliceMut<'_, D, bf16>,
) -> Result<()> {
    const WHAT: &str = "embedding";
    let Embeddings { table, visual } = from;
    let vocab = num_rows(WHAT, "the table", table.len(), hidden)?;
    let visual_rows = num_rows(WHAT, "the visual matrix", visual.len(), hidden)?;
    let sizes = Rows { rows: sources.len(), cols: hidden };
    check_sizes(WHAT, sizes)?;
    if Some(to.len()) != sizes.num_elements() {
        bail!("{WHAT}: the output has {} elements: not those of {sizes:?}", to.len());
    }
    let addresses = [table.address(), visual.address(), to.address()];
    for address in addresses {
        check_element::<bf16>(WHAT, address)?;
    }
    check_element::<i32>(WHAT, sources.address())?;
    let params = EmbeddingForward {
        table: table.address(),
        visual: visual.address(),
        sources: sources.address(),
        to: to.address(),
        vocab: vocab as u32,
        visual_rows: visual_rows as u32,
        num_rows: sizes.rows as u32,
        hidden: hidden as u32,
        aligned: u32::from(rows_are_aligned::<bf16>(hidden, &addresses)),
    };
    if hidden == 0 {
        return Ok(());
    }
    let Some(grid) = Grid::new(WHAT, sizes.rows.div_ceil(ROWS), 1, 1)? else { return Ok(()) };
    // SAFETY: `table` and `visual` have `vocab` and `visual_rows` rows, `to` one for each of `sources`, and all have addresses
    // of their types (checked above): the kernel reads one row of theirs, or none, for each row of `to`, which it writes, and
    // moves sources into the matrices. It touches sixteen bytes at once only where every row starts at a multiple of them.
    unsafe { device.launch(&FORWARD, grid, &params) }
}

/// Adds the rows of `dy`, `(_, hidden)`, to those of `dtable`, `(vocab, hidden)`, that are theirs. Sums are f32, always in the same
/// order. Rows of no bucket go nowhere.
///
/// # Errors
/// If there are more than 2^31 - 1 rows, columns or tokens in the buckets, a length does not fit, or the device fails.
pub fn backward<D: Device>(
    device: &D,
    hidden: usize,
    dy: Slice<'_, D, bf16>,
    buckets: DeviceBuckets<'_, D>,
    dtable: SliceMut<'_, D, f32>,
) -> Result<()> {
    const WHAT: &str = "embedding backward";
    let DeviceBuckets { ids, starts, rows } = buckets;
    let vocab = num_rows(WHAT, "the gradient of the table", dtable.len(), hidden)?;
    let num_rows = num_rows(WHAT, "dy", dy.len(), hidden)?;
    check_sizes(WHAT, Rows { rows: rows.len(), cols: ids.len() })?;
    if starts.len() != ids.len() + 1 {
        bail!("{WHAT}: {} buckets have {} starts, not one more", ids.len(), starts.len());
    }
    check_element::<bf16>(WHAT, dy.address())?;
    check_element::<f32>(WHAT, dtable.address())?;
    for address in [ids.address(), starts.address(), rows.address()] {
        check_element::<i32>(WHAT, address)?;
    }
    let aligned = rows_are_aligned::<bf16>(hidden, &[dy.address()])
        && rows_are_aligned::<f32>(hidden, &[dtable.address()]);
    let params = EmbeddingBackward {
        dy: dy.address(),
        ids: ids.address(),
        starts: starts.address(),
        rows: rows.address(),
        dtable: dtable.address(),
        vocab: vocab as u32,
        num_rows: num_rows as u32,
        num_listed: rows.len() as u32,
        hidden: hidden as u32,
        aligned: u32::from(aligned),
    };
    let Some(grid) = Grid::new(WHAT, ids.len(), hidden.div_ceil(TILE), 1)? else { return Ok(()) };
    // SAFETY: `dtable` has `vocab` rows, `dy` `num_rows`, `rows` `num_listed` elements, `ids` one for each bucket and `starts` one
    // more, and all have addresses of their types (checked above): the kernel goes beyond none of them, whatever they hold. It
    // touches sixteen bytes at once only where every row starts at a multiple of them.
    unsafe { device.launch(&BACKWARD, grid, &params) }
}
