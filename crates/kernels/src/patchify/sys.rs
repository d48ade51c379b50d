//! The kernel of `patchify.cu` and its parameters.

use crate::device::{Kernel, Module, Params, module};

static MODULE: Module = module!("patchify");

/// `PatchifyParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct PatchifyParams {
    pub(super) pixels: u64,
    pub(super) rows: u64,
    pub(super) units: i64,
    pub(super) grid_rows: i32,
    pub(super) grid_cols: i32,
    pub(super) edge: i32,
    pub(super) units_per_row: i32,
    pub(super) scale: [f32; 3],
    pub(super) shift: [f32; 3],
}

// SAFETY: `repr(C)`, and the fields are those of the struct of the same name in `patchify.cu`.
unsafe impl Params for PatchifyParams {}

pub(super) const THREADS: usize = 256;
pub(super) static PATCHIFY: Kernel<PatchifyParams> = Kernel::new(&MODULE, "patchify", THREADS as u32, 0);
