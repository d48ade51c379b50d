//! SwiGLU on a [`Device`]: checks, grids and parameters of the kernels of `swiglu.cu`.

use super::sys::{BACKWARD, FORWARD, SwigluParams, THREADS};
use crate::column_sum::Rows;
use crate::device::{Device, Grid, Kernel, Slice, SliceMut, check_alignment};
use candle_core::{Result, bail};
use half::bf16;

/// Channels of a thread.
const UNIT: usize = 8;

/// `h = gate sigmoid(gate) up`. `gate_up`: `(rows, 2 * cols)`, the gate in the first half of each row; `h`: `(rows, cols)`,
/// written whole. Computed in f32 and rounded once.
///
/// # Errors
/// If `cols` is no multiple of 8, a length is not that of the sizes, or an address is not a multiple of 16 bytes.
pub fn forward<D: Device>(
    device: &D,
    sizes: Rows,
    gate_up: Slice<'_, D, bf16>,
    h: SliceMut<'_, D, bf16>,
) -> Result<()> {
    let tensors = [("gate_up", gate_up.address(), gate_up.len(), 2), ("h", h.address(), h.len(), 1)];
    let Some((grid, params)) = prepare(sizes, &tensors)? else { return Ok(()) };
    let params = SwigluParams { gate_up: gate_up.address(), to: h.address(), ..params };
    launch(device, &FORWARD, grid, &params)
}

/// The gradient of `gate_up`, `(rows, 2 * cols)`, from that of `h`, `(rows, cols)`; written whole.
///
/// # Errors
/// As [`forward`].
pub fn backward<D: Device>(
    device: &D,
    sizes: Rows,
    gate_up: Slice<'_, D, bf16>,
    dh: Slice<'_, D, bf16>,
    dgate_up: SliceMut<'_, D, bf16>,
) -> Result<()> {
    let tensors = [
        ("gate_up", gate_up.address(), gate_up.len(), 2),
        ("dh", dh.address(), dh.len(), 1),
        ("dgate_up", dgate_up.address(), dgate_up.len(), 2),
    ];
    let Some((grid, params)) = prepare(sizes, &tensors)? else { return Ok(()) };
    let (gate_up, dh) = (gate_up.address(), dh.address());
    launch(device, &BACKWARD, grid, &SwigluParams { gate_up, dh, to: dgate_up.address(), ..params })
}

/// Checks sizes, lengths and addresses: `(name, address, length, halves)`. `None` if there is nothing to do.
fn prepare(sizes: Rows, tensors: &[(&str, u64, usize, usize)]) -> Result<Option<(Grid, SwigluParams)>> {
    const WHAT: &str = "swiglu";
    let Rows { rows, cols } = sizes;
    let total = sizes.num_elements().and_then(|len| len.checked_mul(2));
    let Some(total) = total.filter(|_| i32::try_from(cols).is_ok() && cols.is_multiple_of(UNIT)) else {
        bail!("{WHAT}: {rows} rows of {cols} channels; the kernels take multiples of {UNIT}")
    };
    for (name, address, len, halves) in tensors {
        let expected = total / 2 * halves;
        if *len != expected {
            bail!("{WHAT}: {name} has {len} elements, not {expected}");
        }
        check_alignment(name, *address, *len)?;
    }
    let units = total / 2 / UNIT;
    let grid = Grid::new(WHAT, units.div_ceil(THREADS as usize), 1, 1)?;
    let units_per_row = (cols / UNIT) as i32;
    let params = SwigluParams { gate_up: 0, dh: 0, to: 0, units: units as i64, units_per_row, unused: 0 };
    Ok(grid.map(|grid| (grid, params)))
}

fn launch<D: Device>(
    device: &D,
    kernel: &Kernel<SwigluParams>,
    grid: Grid,
    params: &SwigluParams,
) -> Result<()> {
    // SAFETY: every tensor has the length of the sizes and is aligned (`prepare`); the forward does not touch `dh`.
    unsafe { device.launch(kernel, grid, params) }
}
