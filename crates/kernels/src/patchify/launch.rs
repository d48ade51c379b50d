//! Patches on a [`Device`].

use super::sys::{PATCHIFY, PatchifyParams, THREADS};
use super::{Patches, UNIT};
use crate::device::{Device, Grid, Slice, SliceMut, check_alignment};
use candle_core::{Result, bail};
use half::bf16;

/// Patches of `pixels`, `(batch, grid_rows * edge, grid_cols * edge, 3)`, normalised and rounded once, as rows
/// `(num_patches, cols)`; written whole, with zeros beyond the pixels of a patch.
///
/// # Errors
/// If a length does not fit, the result is not 16 bytes aligned, or the deviation is not positive.
pub fn patchify<D: Device>(
    device: &D,
    sizes: &Patches,
    pixels: Slice<'_, D, u8>,
    rows: SliceMut<'_, D, bf16>,
) -> Result<()> {
    let (num_pixels, num_elements) = sizes.lens()?;
    let (scale, shift) = sizes.scale_and_shift()?;
    if pixels.len() != num_pixels || rows.len() != num_elements {
        let (found, to) = (pixels.len(), rows.len());
        bail!("patchify: {found} pixel values to {to} elements, not {num_pixels} to {num_elements}");
    }
    check_alignment("patchify: the result", rows.address(), rows.len())?;
    let units = num_elements / UNIT;
    let Some(grid) = Grid::new("patchify", units.div_ceil(THREADS), 1, 1)? else { return Ok(()) };
    let int = |what: &str, size: usize| match i32::try_from(size) {
        Ok(size) => Ok(size),
        Err(_) => bail!("patchify: {size} {what} are more than the kernel can number"),
    };
    // Products of these that the kernel makes in 32 bits.
    int("columns", sizes.cols()?)?;
    int("patches of an image", sizes.grid_rows.saturating_mul(sizes.grid_cols))?;
    let params = PatchifyParams {
        pixels: pixels.address(),
        rows: rows.address(),
        units: units as i64,
        grid_rows: int("patches", sizes.grid_rows)?,
        grid_cols: int("patches", sizes.grid_cols)?,
        edge: int("pixels", sizes.edge)?,
        units_per_row: int("columns", sizes.cols()? / UNIT)?,
        scale: scale.map(|scale| scale as f32),
        shift: shift.map(|shift| shift as f32),
    };
    // SAFETY: both have the length of the sizes, and the result is aligned (checked above).
    unsafe { device.launch(&PATCHIFY, grid, &params) }
}
