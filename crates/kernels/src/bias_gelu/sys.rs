//! What `bias_gelu.cu` declares.

use super::Gelu;
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

const fn kernel(name: &'static str, shared_memory: u32) -> Kernel<BiasGeluParams> {
    Kernel::new(&MODULE, name, THREADS, shared_memory)
}

static FORWARD: Kernel<BiasGeluParams> = kernel("bias_gelu_forward", 0);
static TANH_FORWARD: Kernel<BiasGeluParams> = kernel("bias_gelu_tanh_forward", 0);
static BACKWARD: Kernel<BiasGeluParams> = kernel("bias_gelu_backward", shared_memory(size_of::<bf16>()));
static TANH_BACKWARD: Kernel<BiasGeluParams> =
    kernel("bias_gelu_tanh_backward", shared_memory(size_of::<bf16>()));

pub(super) fn forward(kind: Gelu) -> &'static Kernel<BiasGeluParams> {
    match kind {
        Gelu::Exact => &FORWARD,
        Gelu::Tanh => &TANH_FORWARD,
    }
}

pub(super) fn backward(kind: Gelu) -> &'static Kernel<BiasGeluParams> {
    match kind {
        Gelu::Exact => &BACKWARD,
        Gelu::Tanh => &TANH_BACKWARD,
    }
}
