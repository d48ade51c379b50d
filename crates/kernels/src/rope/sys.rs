//! What `rope.cu` declares.

use crate::column_sum::sys::{THREADS, shared_memory};
use crate::device::{Kernel, Module, Params, module};
use half::bf16;

/// `RopeParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RopeParams {
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) positions: u64,
    pub(super) cos: u64,
    pub(super) sin: u64,
    pub(super) partials: u64,
    pub(super) rows: u32,
    pub(super) rows_per_chunk: u32,
    pub(super) rotated_heads: u32,
    pub(super) heads: u32,
    pub(super) half: u32,
    pub(super) cols: u32,
    pub(super) num_positions: u32,
    pub(super) aligned: u32,
}

// SAFETY: the fields of the struct in `rope.cu`, in its order: six addresses, then numbers of 32 bits.
unsafe impl Params for RopeParams {}

static MODULE: Module = module!("rope");

/// Pairs of a unit.
pub(super) const UNIT: usize = 8;
/// Units of a block: its lanes.
pub(super) const TILE: usize = 32;

pub(super) static FORWARD: Kernel<RopeParams> = Kernel::new(&MODULE, "rope_forward", THREADS, 0);
/// The sums of both halves of its units.
pub(super) static BACKWARD: Kernel<RopeParams> =
    Kernel::new(&MODULE, "rope_backward", THREADS, 2 * shared_memory(size_of::<bf16>()));
