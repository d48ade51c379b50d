//! Starts the kernels of `cross_entropy.cu`.

use super::sys::{CrossEntropyParams, TOTALS, TotalsParams, kernel};
use super::{CHANNELS, Loss};
use crate::Rows;
use crate::device::{
    Device, Grid, Memory, Slice, SliceMut, check_alignment, check_element, check_sizes, rows_are_aligned,
};
use crate::matmul::Output;
use candle_core::{Result, bail};
use half::bf16;

/// What [`cross_entropy`] works on. A chunk of the rows of a step is as good as all of them.
pub struct Arguments<'a, D: Memory> {
    /// `(rows, vocab)`; overwritten by their gradient.
    pub logits: SliceMut<'a, D, D::Half>,
    /// `(rows)`. One that is neither below the vocabulary nor ignored makes its row and the loss NaN.
    pub labels: Slice<'a, D, i32>,
    /// One number that the gradient is multiplied by besides [`Loss::scale`]: one over the labels of the whole step.
    pub scale: Option<Slice<'a, D, D::Full>>,
    /// `(rows, 4)`: loss, z-loss, 1 for a label, 1 for a hit, of each row. Written whole.
    pub stats: SliceMut<'a, D, D::Full>,
}

/// What [`totals`] writes.
pub struct Totals<'a, D: Memory> {
    /// The sums of losses and of z-losses.
    pub sums: SliceMut<'a, D, D::Full>,
    /// The numbers of labels and of hits.
    pub counts: SliceMut<'a, D, i32>,
    /// Whether their old content is kept: all chunks of a step but the first add to it.
    pub output: Output,
}

/// The softmax cross-entropy of every row of logits `(rows, vocab)`, and its gradient in their place. Computed in f32, the
/// gradient rounded once; [`totals`] adds up the losses.
///
/// # Errors
/// If there are more than 2^31 - 1 rows or logits in a row, a length is not that of the sizes, the stats are not aligned to 16
/// bytes, or the device fails.
pub fn cross_entropy<D: Device>(
    device: &D,
    sizes: Rows,
    loss: Loss,
    arguments: Arguments<'_, D>,
) -> Result<()> {
    const WHAT: &str = "cross_entropy";
    let Arguments { logits, labels, scale, stats } = arguments;
    check_sizes(WHAT, sizes)?;
    if Some(logits.len()) != sizes.num_elements() {
        bail!("{WHAT}: the logits have {} elements: not those of {sizes:?}", logits.len());
    }
    if labels.len() != sizes.rows || stats.len() != CHANNELS * sizes.rows {
        let (labels, stats) = (labels.len(), stats.len());
        bail!("{WHAT}: there are {labels} labels and {stats} stats for the rows of {sizes:?}");
    }
    if let Some(scale) = scale
        && scale.len() != 1
    {
        bail!("{WHAT}: the scale is {} numbers, not one", scale.len());
    }
    if sizes.cols == 0 && sizes.rows > 0 {
        bail!("{WHAT}: {} rows of no logits have no softmax", sizes.rows);
    }
    check_element::<bf16>(WHAT, logits.address())?;
    check_element::<i32>(WHAT, labels.address())?;
    let scale_address = scale.map_or(0, |scale| scale.address());
    check_element::<f32>(WHAT, scale_address)?;
    check_alignment(WHAT, stats.address(), stats.len())?;
    let params = CrossEntropyParams {
        logits: logits.address(),
        labels: labels.address(),
        device_scale: scale_address,
        stats: stats.address(),
        vocab: sizes.cols as u32,
        ignore_index: loss.ignore_index,
        scale: loss.scale,
        z_loss: loss.z_loss,
        aligned: u32::from(rows_are_aligned::<bf16>(sizes.cols, &[logits.address()])),
    };
    let Some(grid) = Grid::new(WHAT, sizes.rows, 1, 1)? else { return Ok(()) };
    // SAFETY: `logits`, `labels` and `stats` have the lengths of the sizes, `scale` is absent or one number, and all have
    // addresses of their types (checked above): a block reads and writes the one row of its number, no column beyond the
    // vocabulary, reads the logit of a label only below it, and touches sixteen bytes at once only in the stats, whose
    // address is a multiple of them, and where every row of logits starts at a multiple of them.
    unsafe { device.launch(kernel(sizes.cols), grid, &params) }
}

/// Adds up the stats `(rows, 4)` that [`cross_entropy`] left, always in the same order.
///
/// # Errors
/// If there are more than 2^31 - 1 rows, a length does not fit, the stats are not aligned to 16 bytes, or the device fails.
pub fn totals<D: Device>(device: &D, stats: Slice<'_, D, f32>, totals: Totals<'_, D>) -> Result<()> {
    const WHAT: &str = "cross_entropy totals";
    let Totals { sums, counts, output } = totals;
    if !stats.len().is_multiple_of(CHANNELS) || sums.len() != 2 || counts.len() != 2 {
        let lens = [stats.len(), sums.len(), counts.len()];
        bail!("{WHAT}: stats, sums and counts have {lens:?} elements, not 4 a row, 2 and 2");
    }
    let rows = stats.len() / CHANNELS;
    check_sizes(WHAT, Rows { rows, cols: CHANNELS })?;
    check_alignment(WHAT, stats.address(), stats.len())?;
    check_element::<f32>(WHAT, sums.address())?;
    check_element::<i32>(WHAT, counts.address())?;
    let params = TotalsParams {
        stats: stats.address(),
        sums: sums.address(),
        counts: counts.address(),
        rows: rows as u32,
        accumulate: u32::from(output == Output::Accumulate),
    };
    let Some(grid) = Grid::new(WHAT, 1, 1, 1)? else { return Ok(()) };
    // SAFETY: the kernel reads four stats, sixteen aligned bytes, of each of `rows` rows, and writes two sums and two counts;
    // the lengths and addresses are right for that (checked above).
    unsafe { device.launch(&TOTALS, grid, &params) }
}
