//! What `bias_gelu.cu` declares.

use crate::column_sum::sys::{THREADS, shared_memory};
use crate::device::{Kernel, Module, Params, module};
use half::bf16;

/// `BiasGeluParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct BiasGeluParams {
    pub(super) x: u64,
    pub(super) bias: u64,
    pub(super) dy: u64,
    pub(super) to: u64,
    pub(super) partials: u64,
    pub(super) rows: u32,
    pub(super) cols: u32,
    pub(super) rows_per_chunk: u32,
    pub(super) aligned: u32,
}

// SAFETY: the fields of the struct in `bias_gelu.cu`, in its order: five addresses, then numbers of 32 bits.
unsafe impl Params for BiasGeluParams {}

static MODULE: Module = module!("bias_gelu");

pub(super) static FORWARD: Kernel<BiasGeluParams> = Kernel::new(&MODULE, "bias_gelu_forward", THREADS, 0);
pub(super) static BACKWARD: Kernel<BiasGeluParams> =
    Kernel::new(&MODULE, "bias_gelu_backward", THREADS, shared_memory(size_of::<bf16>()));
