//! What `cross_entropy.cu` declares.

use crate::device::{Kernel, Module, Params, module};

/// `CrossEntropyParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct CrossEntropyParams {
    pub(super) logits: u64,
    pub(super) labels: u64,
    pub(super) device_scale: u64,
    pub(super) stats: u64,
    pub(super) vocab: u32,
    pub(super) ignore_index: i32,
    pub(super) scale: f32,
    pub(super) z_loss: f32,
    pub(super) aligned: u32,
}

// SAFETY: the fields of the struct in `cross_entropy.cu`, in its order: four addresses, then numbers of 32 bits.
unsafe impl Params for CrossEntropyParams {}

/// `TotalsParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct TotalsParams {
    pub(super) stats: u64,
    pub(super) sums: u64,
    pub(super) counts: u64,
    pub(super) rows: u32,
    pub(super) accumulate: u32,
}

// SAFETY: the fields of the struct in `cross_entropy.cu`, in its order: three addresses, then numbers of 32 bits.
unsafe impl Params for TotalsParams {}

static MODULE: Module = module!("cross_entropy");

/// The kernel of rows of so many logits: 128 threads take up to four turns of eight logits, beyond that 1,024 threads.
pub(super) fn kernel(vocab: usize) -> &'static Kernel<CrossEntropyParams> {
    if vocab > 4 * 8 * 128 { &LONG } else { &SHORT }
}

/// A block that keeps so many floats for each of its warps.
const fn shared_memory(threads: u32, per_warp: u32) -> u32 {
    threads / 32 * per_warp * size_of::<f32>() as u32
}

static LONG: Kernel<CrossEntropyParams> =
    Kernel::new(&MODULE, "cross_entropy_1024", 1024, shared_memory(1024, 3));
static SHORT: Kernel<CrossEntropyParams> =
    Kernel::new(&MODULE, "cross_entropy_128", 128, shared_memory(128, 3));
pub(super) static TOTALS: Kernel<TotalsParams> =
    Kernel::new(&MODULE, "cross_entropy_totals", 256, shared_memory(256, 6));
