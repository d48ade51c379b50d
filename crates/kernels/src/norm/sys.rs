//! The kernels of `norm.cu` and their parameters.

use crate::device::{Kernel, Module, Params, module};

static MODULE: Module = module!("norm");

/// `NormForward`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct NormForward {
    pub(super) x: u64,
    pub(super) residual: u64,
    pub(super) weight: u64,
    pub(super) bias: u64,
    pub(super) sum: u64,
    pub(super) y: u64,
    pub(super) mean: u64,
    pub(super) inverse: u64,
    pub(super) rows: i64,
    pub(super) hidden: i32,
    pub(super) eps: f32,
}

/// `NormBackward`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct NormBackward {
    pub(super) s: u64,
    pub(super) weight: u64,
    pub(super) dy: u64,
    pub(super) dresidual: u64,
    pub(super) mean: u64,
    pub(super) inverse: u64,
    pub(super) ds: u64,
    pub(super) dweight: u64,
    pub(super) dbias: u64,
    pub(super) rows: i64,
    pub(super) hidden: i32,
    pub(super) rows_per_block: i32,
}

// SAFETY: `repr(C)`, and the fields are those of the struct of the same name in `norm.cu`.
unsafe impl Params for NormForward {}
// SAFETY: as above.
unsafe impl Params for NormBackward {}

/// Warps of a block, each with a row.
pub(super) const WARPS: usize = 8;
const THREADS: u32 = 32 * WARPS as u32;
/// Channels that a unit of a warp holds.
const UNIT: usize = 32 * 8;
/// Channels of the largest kernel.
pub(super) const MAX_HIDDEN: usize = 16 * UNIT;

/// The kernels for rows of up to so many units, of RMSNorm and of LayerNorm. The backward wants a float of shared memory for each
/// channel.
pub(super) struct Kernels {
    pub(super) forward: [Kernel<NormForward>; 2],
    pub(super) backward: [Kernel<NormBackward>; 2],
}

macro_rules! kernels {
    ($units:literal) => {
        Kernels {
            forward: [
                Kernel::new(&MODULE, concat!("rms_norm_forward_", $units), THREADS, 0),
                Kernel::new(&MODULE, concat!("layer_norm_forward_", $units), THREADS, 0),
            ],
            backward: [
                Kernel::new(
                    &MODULE,
                    concat!("rms_norm_backward_", $units),
                    THREADS,
                    $units * UNIT as u32 * 4,
                ),
                Kernel::new(
                    &MODULE,
                    concat!("layer_norm_backward_", $units),
                    THREADS,
                    $units * UNIT as u32 * 4,
                ),
            ],
        }
    };
}

static KERNELS: [(usize, Kernels); 6] = [
    (1, kernels!(1)),
    (2, kernels!(2)),
    (4, kernels!(4)),
    (6, kernels!(6)),
    (8, kernels!(8)),
    (16, kernels!(16)),
];

/// The kernels for rows of so many channels; `None` if there are none so large.
pub(super) fn kernels(hidden: usize) -> Option<&'static Kernels> {
    KERNELS.iter().find(|(units, _)| hidden <= units * UNIT).map(|(_, kernels)| kernels)
}
