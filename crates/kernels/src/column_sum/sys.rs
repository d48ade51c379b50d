//! What `column_sum.cu` declares.

use crate::device::{Kernel, Module, Params, module};
use half::bf16;

/// `ColumnSumParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ColumnSumParams {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) rows_per_chunk: u32,
    pub(super) aligned: u32,
    pub(super) accumulate: u32,
}

// SAFETY: the fields of the struct in `column_sum.cu`, in its order: two addresses, then numbers of 32 bits.
unsafe impl Params for ColumnSumParams {}

static MODULE: Module = module!("column_sum");

/// Threads of a block: 8 warps.
pub(crate) const THREADS: u32 = 256;

/// Bytes of shared memory of a block whose input has elements of so many bytes: a float for each element that its threads hold.
pub(crate) const fn shared_memory(element: usize) -> u32 {
    THREADS * vec16_len(element) * size_of::<f32>() as u32
}

/// Columns of a tile whose elements have so many bytes: those of the 32 lanes of a warp.
pub(crate) const fn tile_columns(element: usize) -> usize {
    32 * vec16_len(element) as usize
}

const fn vec16_len(element: usize) -> u32 {
    16 / element as u32
}

/// An element type that is summed on devices: bf16 or f32.
pub trait Element: Copy + 'static {
    /// Its columns to partial sums.
    const PARTIAL: &'static Kernel<ColumnSumParams>;
    /// From partial sums to sums of it.
    const FINISH: &'static Kernel<ColumnSumParams>;
}

const fn kernel<T>(name: &'static str) -> Kernel<ColumnSumParams> {
    Kernel::new(&MODULE, name, THREADS, shared_memory(size_of::<T>()))
}

static PARTIAL_BF16: Kernel<ColumnSumParams> = kernel::<bf16>("column_sum_partial_bf16");
static PARTIAL_F32: Kernel<ColumnSumParams> = kernel::<f32>("column_sum_partial_f32");
static FINISH_BF16: Kernel<ColumnSumParams> = kernel::<f32>("column_sum_finish_bf16");
static FINISH_F32: Kernel<ColumnSumParams> = kernel::<f32>("column_sum_finish_f32");

impl Element for bf16 {
    const PARTIAL: &'static Kernel<ColumnSumParams> = &PARTIAL_BF16;
    const FINISH: &'static Kernel<ColumnSumParams> = &FINISH_BF16;
}

impl Element for f32 {
    const PARTIAL: &'static Kernel<ColumnSumParams> = &PARTIAL_F32;
    const FINISH: &'static Kernel<ColumnSumParams> = &FINISH_F32;
}
