//! What `avg_pool.cu` declares.

use crate::device::{Kernel, Module, Params, module};
use half::bf16;

/// `AvgPoolParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AvgPoolParams {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) num_pixels: u32,
    pub(super) from_edge: u32,
    pub(super) to_edge: u32,
    pub(super) channels: u32,
    pub(super) aligned: u32,
}

// SAFETY: the fields of the struct in `avg_pool.cu`, in its order: two addresses, then numbers of 32 bits.
unsafe impl Params for AvgPoolParams {}

static MODULE: Module = module!("avg_pool");

/// Threads of a block.
const THREADS: u32 = 256;
/// Pixels of a block, one for each warp.
pub(super) const PIXELS: usize = THREADS as usize / 32;

const fn kernel(name: &'static str) -> Kernel<AvgPoolParams> {
    Kernel::new(&MODULE, name, THREADS, 0)
}

/// An element type that is pooled on devices: bf16 or f32.
pub trait Element: Copy + 'static {
    /// From the input to the output.
    const FORWARD: &'static Kernel<AvgPoolParams>;
    /// From the gradient of the output to that of the input.
    const BACKWARD: &'static Kernel<AvgPoolParams>;
}

static FORWARD_BF16: Kernel<AvgPoolParams> = kernel("avg_pool_forward_bf16");
static FORWARD_F32: Kernel<AvgPoolParams> = kernel("avg_pool_forward_f32");
static BACKWARD_BF16: Kernel<AvgPoolParams> = kernel("avg_pool_backward_bf16");
static BACKWARD_F32: Kernel<AvgPoolParams> = kernel("avg_pool_backward_f32");

impl Element for bf16 {
    const FORWARD: &'static Kernel<AvgPoolParams> = &FORWARD_BF16;
    const BACKWARD: &'static Kernel<AvgPoolParams> = &BACKWARD_BF16;
}

impl Element for f32 {
    const FORWARD: &'static Kernel<AvgPoolParams> = &FORWARD_F32;
    const BACKWARD: &'static Kernel<AvgPoolParams> = &BACKWARD_F32;
}
