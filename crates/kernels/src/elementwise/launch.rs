//! Starts the kernels of `elementwise.cu`.

use super::sys::{ADD, ElementwiseParams, FILL, NARROW, THREADS, WIDEN};
use crate::device::{Device, Grid, Kernel, Slice, SliceMut, check_alignment};
use candle_core::{Result, bail};
use half::bf16;

/// `to = left + right`, in f32 and rounded once; all of one length, `to` written whole.
///
/// # Errors
/// If lengths differ or an address is not a multiple of 16 bytes.
pub fn add<D: Device>(
    device: &D,
    left: Slice<'_, D, bf16>,
    right: Slice<'_, D, bf16>,
    to: SliceMut<'_, D, bf16>,
) -> Result<()> {
    let right_end = (right.address(), right.len());
    run(device, &ADD, (left.address(), left.len()), Some(right_end), (to.address(), to.len()))
}

/// `to += right`, as [`add`].
///
/// # Errors
/// As [`add`].
pub fn add_assign<D: Device>(device: &D, right: Slice<'_, D, bf16>, to: SliceMut<'_, D, bf16>) -> Result<()> {
    // A thread reads an element before it writes it, and no other touches it.
    let to = (to.address(), to.len());
    run(device, &ADD, to, Some((right.address(), right.len())), to)
}

/// f32 to bf16, rounded to the nearest even; `to` written whole.
///
/// # Errors
/// As [`add`].
pub fn narrow<D: Device>(device: &D, from: Slice<'_, D, f32>, to: SliceMut<'_, D, bf16>) -> Result<()> {
    run(device, &NARROW, (from.address(), from.len()), None, (to.address(), to.len()))
}

/// bf16 to f32; `to` written whole.
///
/// # Errors
/// As [`add`].
pub fn widen<D: Device>(device: &D, from: Slice<'_, D, bf16>, to: SliceMut<'_, D, f32>) -> Result<()> {
    run(device, &WIDEN, (from.address(), from.len()), None, (to.address(), to.len()))
}

/// Every number becomes `value`.
///
/// # Errors
/// If the address is not a multiple of 16 bytes.
pub fn fill<D: Device>(device: &D, to: SliceMut<'_, D, f32>, value: f32) -> Result<()> {
    const LEN: usize = 4;
    check_alignment("elementwise", to.address(), to.len())?;
    let Some(grid) = Grid::new("elementwise", to.len().div_ceil(LEN * THREADS), 1, 1)? else { return Ok(()) };
    let (to, len) = (to.address(), to.len() as i64);
    let params = ElementwiseParams { from: 0, right: 0, to, len, value: value.to_bits(), unused: 0 };
    // SAFETY: the buffer has `len` numbers and is aligned (checked above); nothing else is touched.
    unsafe { device.launch(&FILL, grid, &params) }
}

/// Starts a kernel whose threads take 8 elements each of buffers given as `(address, length)`.
fn run<D: Device>(
    device: &D,
    kernel: &Kernel<ElementwiseParams>,
    from: (u64, usize),
    right: Option<(u64, usize)>,
    to: (u64, usize),
) -> Result<()> {
    const LEN: usize = 8;
    let right = right.unwrap_or(from);
    for (address, len) in [from, right, to] {
        if len != to.1 {
            bail!("elementwise: buffers of {}, {} and {} elements", from.1, right.1, to.1);
        }
        check_alignment("elementwise", address, len)?;
    }
    let Some(grid) = Grid::new("elementwise", to.1.div_ceil(LEN * THREADS), 1, 1)? else { return Ok(()) };
    let params =
        ElementwiseParams { from: from.0, right: right.0, to: to.0, len: to.1 as i64, value: 0, unused: 0 };
    // SAFETY: all buffers have `len` elements of the kernel's types, which the callers' signatures say, and are aligned.
    unsafe { device.launch(kernel, grid, &params) }
}
