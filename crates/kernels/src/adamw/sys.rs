//! The kernels of `adamw.cu` and their parameters.

use crate::device::{Kernel, Module, Params, module};

static MODULE: Module = module!("adamw");

/// `GradientNorm`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GradientNorm {
    pub(super) grad: u64,
    pub(super) partials: u64,
    pub(super) len: i64,
}

/// `GradientNormFinish`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GradientNormFinish {
    pub(super) partials: u64,
    pub(super) scale: u64,
    pub(super) control: u64,
    pub(super) step: u64,
    pub(super) count: i64,
    pub(super) max_norm: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
}

/// `AdamwUpdate`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct AdamwUpdate {
    pub(super) w: u64,
    pub(super) grad: u64,
    pub(super) m: u64,
    pub(super) v: u64,
    pub(super) copy: u64,
    pub(super) ema: u64,
    pub(super) boundaries: u64,
    pub(super) decays: u64,
    pub(super) control: u64,
    pub(super) units: i64,
    pub(super) ranges: i32,
    pub(super) lr: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) eps: f32,
    pub(super) ema_decay: f32,
}

// SAFETY: `repr(C)`, and the fields are those of the struct of the same name in `adamw.cu`.
unsafe impl Params for GradientNorm {}
// SAFETY: as above.
unsafe impl Params for GradientNormFinish {}
// SAFETY: as above.
unsafe impl Params for AdamwUpdate {}

/// Threads of a block.
pub(super) const THREADS: usize = 256;
/// Gradients whose squares one block adds.
pub(super) const CHUNK: usize = 65536;

const fn sums(element: usize) -> u32 {
    (THREADS * element) as u32
}

pub(super) static NORM_PARTIAL: Kernel<GradientNorm> =
    Kernel::new(&MODULE, "gradient_norm_partial", THREADS as u32, sums(size_of::<f32>()));
pub(super) static NORM_FINISH: Kernel<GradientNormFinish> =
    Kernel::new(&MODULE, "gradient_norm_finish", THREADS as u32, sums(size_of::<f64>()));
pub(super) static UPDATE: Kernel<AdamwUpdate> = Kernel::new(&MODULE, "adamw_update", THREADS as u32, 0);
