//! What `gather_rows.cu` declares.

use crate::device::{Kernel, Module, Params, module};

/// `GatherRowsParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct GatherRowsParams {
    pub(super) from: u64,
    pub(super) indices: u64,
    pub(super) to: u64,
    pub(super) from_rows: u32,
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) aligned: u32,
}

// SAFETY: the fields of the struct in `gather_rows.cu`, in its order: three addresses, then numbers of 32 bits.
unsafe impl Params for GatherRowsParams {}

static MODULE: Module = module!("gather_rows");

/// Rows of a block.
pub(crate) const ROWS: usize = 8;

pub(super) static GATHER_ROWS: Kernel<GatherRowsParams> = Kernel::new(&MODULE, "gather_rows", 256, 0);
