//! The kernels of `swiglu.cu` and their parameters.

use crate::device::{Kernel, Module, Params, module};

static MODULE: Module = module!("swiglu");

/// `SwigluParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct SwigluParams {
    pub(super) gate: u64,
    pub(super) up: u64,
    pub(super) dh: u64,
    pub(super) to: u64,
    pub(super) dup: u64,
    pub(super) units: i64,
    pub(super) units_per_row: i32,
    pub(super) stride: i32,
}

// SAFETY: `repr(C)`, and the fields are those of the struct of the same name in `swiglu.cu`.
unsafe impl Params for SwigluParams {}

pub(super) const THREADS: u32 = 256;
pub(super) static FORWARD: Kernel<SwigluParams> = Kernel::new(&MODULE, "swiglu_forward", THREADS, 0);
pub(super) static BACKWARD: Kernel<SwigluParams> = Kernel::new(&MODULE, "swiglu_backward", THREADS, 0);
