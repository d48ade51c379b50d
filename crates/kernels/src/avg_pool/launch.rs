//! Starts the kernels of `avg_pool.cu`.

pub use super::sys::Element;
use super::sys::{AvgPoolParams, PIXELS};
use crate::device::{ALIGNMENT, Device, Grid, Kernel, Slice, SliceMut};
use candle_core::{Result, bail};

/// Sizes of a pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    /// Number of grids.
    pub batch: usize,
    /// Edge of the grids that are pooled.
    pub grid: usize,
    /// Edge of what they are pooled to; it may be larger.
    pub pooled: usize,
    /// Features of a patch.
    pub channels: usize,
}

impl Pooling {
    /// Elements of the input: `batch * grid * grid * channels`. `None` if there is no such number.
    pub fn input_len(&self) -> Option<usize> {
        self.len(self.grid)
    }

    /// Elements of the output: `batch * pooled * pooled * channels`. `None` if there is no such number.
    pub fn output_len(&self) -> Option<usize> {
        self.len(self.pooled)
    }

    fn len(&self, edge: usize) -> Option<usize> {
        edge.checked_mul(edge)?.checked_mul(self.batch)?.checked_mul(self.channels)
    }
}

/// Pools `x`, `(batch, grid * grid, channels)`, to `y`, `(batch, pooled * pooled, channels)`, which is written whole. Sums are
/// f32, and rounded once.
///
/// # Errors
/// If an edge is 0 or beyond 65,535, there are more than 2^31 - 1 patches or channels, a length is not that of the sizes, or
/// the device fails.
pub fn forward<D: Device, T: Element>(
    device: &D,
    sizes: Pooling,
    x: Slice<'_, D, T>,
    y: SliceMut<'_, D, T>,
) -> Result<()> {
    check_lens("avg_pool", sizes, ("x", x.len()), ("y", y.len()))?;
    // SAFETY: `x` and `y` have the lengths of the sizes (checked above), and so `gather`'s arguments are right.
    unsafe { gather("avg_pool", device, T::FORWARD, sizes, (x, sizes.grid), (y, sizes.pooled)) }
}

/// The gradient `dx`, `(batch, grid * grid, channels)`, from that of the output, `dy`, `(batch, pooled * pooled, channels)`.
/// `dx` is written whole.
///
/// # Errors
/// As [`forward`].
pub fn backward<D: Device, T: Element>(
    device: &D,
    sizes: Pooling,
    dy: Slice<'_, D, T>,
    dx: SliceMut<'_, D, T>,
) -> Result<()> {
    check_lens("avg_pool backward", sizes, ("dx", dx.len()), ("dy", dy.len()))?;
    // SAFETY: `dx` and `dy` have the lengths of the sizes (checked above), and so `gather`'s arguments are right.
    unsafe { gather("avg_pool backward", device, T::BACKWARD, sizes, (dy, sizes.pooled), (dx, sizes.grid)) }
}

/// Refuses lengths that are not those of the sizes.
pub(crate) fn check_lens(
    what: &str,
    sizes: Pooling,
    (input, input_len): (&str, usize),
    (output, output_len): (&str, usize),
) -> Result<()> {
    if sizes.grid == 0 || sizes.pooled == 0 {
        bail!("{what}: grids have an edge of 1 or more, got {sizes:?}");
    }
    if Some(input_len) != sizes.input_len() || Some(output_len) != sizes.output_len() {
        bail!("{what}: {input} has {input_len} elements, {output} has {output_len}: not those of {sizes:?}");
    }
    Ok(())
}

/// Starts a kernel with a warp for each pixel of `to`.
///
/// # Safety
/// `kernel` takes `T`; `from` and `to` hold `batch * edge * edge * channels` elements each.
unsafe fn gather<D: Device, T>(
    what: &str,
    device: &D,
    kernel: &Kernel<AvgPoolParams>,
    sizes: Pooling,
    (from, from_edge): (Slice<'_, D, T>, usize),
    (to, to_edge): (SliceMut<'_, D, T>, usize),
) -> Result<()> {
    const MAX_EDGE: usize = u16::MAX as usize;
    const MAX: usize = i32::MAX as usize;
    if to.is_empty() || from.is_empty() {
        return Ok(());
    }
    let num_pixels = to.len() / sizes.channels;
    if from_edge.max(to_edge) > MAX_EDGE || num_pixels.max(sizes.channels) > MAX {
        bail!("{what}: edges go up to {MAX_EDGE}, patches and channels up to {MAX}, got {sizes:?}");
    }
    let element = size_of::<T>();
    for (name, address) in [("input", from.address()), ("output", to.address())] {
        if !address.is_multiple_of(element as u64) {
            bail!("{what}: the address {address:#x} of the {name} is not a multiple of {element} bytes");
        }
    }
    let is_aligned = |address: u64| address.is_multiple_of(ALIGNMENT);
    let rows_are_aligned = (sizes.channels * element).is_multiple_of(ALIGNMENT as usize);
    let params = AvgPoolParams {
        from: from.address(),
        to: to.address(),
        num_pixels: num_pixels as u32,
        from_edge: from_edge as u32,
        to_edge: to_edge as u32,
        channels: sizes.channels as u32,
        aligned: u32::from(rows_are_aligned && is_aligned(from.address()) && is_aligned(to.address())),
    };
    let Some(grid) = Grid::new(what, num_pixels.div_ceil(PIXELS), 1, 1)? else { return Ok(()) };
    // SAFETY: the kernel reads whole windows inside `from`, writes the pixels below `num_pixels` of `to`, and both hold as many
    // elements as the caller promises; the limits above keep its 32-bit numbers from overflowing. Sixteen bytes are read and
    // written at once only where every row starts at a multiple of them (`aligned`).
    unsafe { device.launch(kernel, grid, &params) }
}
