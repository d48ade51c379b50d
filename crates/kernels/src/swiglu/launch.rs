//! SwiGLU on a [`Device`]: checks, grids and parameters of the kernels of `swiglu.cu`.

use super::sys::{BACKWARD, FORWARD, SwigluParams, THREADS};
use crate::Rows;
use crate::device::{Device, Grid, Kernel, Slice, SliceMut, check_alignment};
use candle_core::{Result, bail};
use half::bf16;

/// Channels of a thread.
const UNIT: usize = 8;
const NAME: &str = "swiglu";

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
    let inputs = Inputs::fused(sizes, gate_up.address(), gate_up.len())?;
    launch_forward(device, inputs, h)
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
    let inputs = Inputs::fused(sizes, gate_up.address(), gate_up.len())?;
    let gradients = Inputs::fused(sizes, dgate_up.address(), dgate_up.len())?;
    launch_backward(device, inputs, dh, gradients)
}

/// [`forward`] of a gate and an up projection, `(len)` each, that are not fused.
///
/// # Errors
/// If lengths differ or are no multiples of 8, or an address is not a multiple of 16 bytes.
pub fn forward_apart<D: Device>(
    device: &D,
    gate: Slice<'_, D, bf16>,
    up: Slice<'_, D, bf16>,
    h: SliceMut<'_, D, bf16>,
) -> Result<()> {
    launch_forward(device, Inputs::apart((gate.address(), gate.len()), (up.address(), up.len()))?, h)
}

/// [`backward`] of a gate and an up projection that are not fused.
///
/// # Errors
/// As [`forward_apart`].
pub fn backward_apart<D: Device>(
    device: &D,
    (gate, up): (Slice<'_, D, bf16>, Slice<'_, D, bf16>),
    dh: Slice<'_, D, bf16>,
    (dgate, dup): (SliceMut<'_, D, bf16>, SliceMut<'_, D, bf16>),
) -> Result<()> {
    let inputs = Inputs::apart((gate.address(), gate.len()), (up.address(), up.len()))?;
    let gradients = Inputs::apart((dgate.address(), dgate.len()), (dup.address(), dup.len()))?;
    launch_backward(device, inputs, dh, gradients)
}

/// A gate and an up projection, or their gradients: where they are, in how many rows of how many units.
#[derive(Clone, Copy)]
struct Inputs {
    gate: u64,
    up: u64,
    rows: usize,
    units_per_row: usize,
    stride: usize,
}

impl Inputs {
    /// Halves of the rows of one matrix.
    fn fused(sizes: Rows, address: u64, len: usize) -> Result<Self> {
        let Rows { rows, cols } = sizes;
        let expected = sizes.num_elements().and_then(|len| len.checked_mul(2));
        let is_known = i32::try_from(cols).is_ok_and(|cols| cols <= i32::MAX / 2);
        let Some(expected) = expected.filter(|_| is_known && cols.is_multiple_of(UNIT)) else {
            bail!("{NAME}: {rows} rows of {cols} channels; the kernels take multiples of {UNIT}")
        };
        if len != expected {
            bail!("{NAME}: the fused projection has {len} elements, not {expected}");
        }
        check_alignment(NAME, address, len)?;
        let up = address + (cols * size_of::<bf16>()) as u64;
        Ok(Self { gate: address, up, rows, units_per_row: cols / UNIT, stride: 2 * (cols / UNIT) })
    }

    /// Matrices of their own, taken as rows of one unit.
    fn apart((gate, gate_len): (u64, usize), (up, up_len): (u64, usize)) -> Result<Self> {
        if gate_len != up_len || !gate_len.is_multiple_of(UNIT) {
            bail!(
                "{NAME}: a gate of {gate_len} and an up projection of {up_len}; they are one multiple of {UNIT}"
            );
        }
        check_alignment(NAME, gate, gate_len)?;
        check_alignment(NAME, up, up_len)?;
        Ok(Self { gate, up, rows: gate_len / UNIT, units_per_row: 1, stride: 1 })
    }

    /// The grid and the parameters for these inputs, a thread a unit; `None` if there is nothing to do.
    fn prepare(&self, (h, h_len): (u64, usize)) -> Result<Option<(Grid, SwigluParams)>> {
        let units = self.rows * self.units_per_row;
        if h_len != units * UNIT {
            bail!("{NAME}: h has {h_len} elements, not {}", units * UNIT);
        }
        check_alignment(NAME, h, h_len)?;
        let grid = Grid::new(NAME, units.div_ceil(THREADS as usize), 1, 1)?;
        let params = SwigluParams {
            gate: self.gate,
            up: self.up,
            dh: 0,
            to: 0,
            dup: 0,
            units: units as i64,
            units_per_row: self.units_per_row as i32,
            stride: self.stride as i32,
        };
        Ok(grid.map(|grid| (grid, params)))
    }
}

fn launch_forward<D: Device>(device: &D, inputs: Inputs, h: SliceMut<'_, D, bf16>) -> Result<()> {
    let Some((grid, params)) = inputs.prepare((h.address(), h.len()))? else { return Ok(()) };
    launch(device, &FORWARD, grid, &SwigluParams { to: h.address(), ..params })
}

fn launch_backward<D: Device>(
    device: &D,
    inputs: Inputs,
    dh: Slice<'_, D, bf16>,
    gradients: Inputs,
) -> Result<()> {
    if (gradients.rows, gradients.stride) != (inputs.rows, inputs.stride) {
        let (found, expected) = (gradients.rows, inputs.rows);
        bail!("{NAME}: gradients of {found} rows for inputs of {expected}");
    }
    let Some((grid, params)) = inputs.prepare((dh.address(), dh.len()))? else { return Ok(()) };
    let params = SwigluParams { dh: dh.address(), to: gradients.gate, dup: gradients.up, ..params };
    launch(device, &BACKWARD, grid, &params)
}

fn launch<D: Device>(
    device: &D,
    kernel: &Kernel<SwigluParams>,
    grid: Grid,
    params: &SwigluParams,
) -> Result<()> {
    // SAFETY: every tensor has the length of the sizes and is aligned (`Inputs::fused`, `Inputs::apart`, `Inputs::prepare`); the
    // forward touches neither `dh` nor `dup`.
    unsafe { device.launch(kernel, grid, params) }
}
