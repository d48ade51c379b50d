//! The kernels of `elementwise.cu` and their parameters.

use crate::device::{Kernel, Module, Params, module};

static MODULE: Module = module!("elementwise");

/// `ElementwiseParams`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct ElementwiseParams {
    pub(super) from: u64,
    pub(super) right: u64,
    pub(super) to: u64,
    pub(super) len: i64,
    pub(super) value: u32,
    pub(super) unused: u32,
}

// SAFETY: `repr(C)`, and the fields are those of the struct of the same name in `elementwise.cu`.
unsafe impl Params for ElementwiseParams {}

pub(super) const THREADS: usize = 256;

const fn kernel(name: &'static str) -> Kernel<ElementwiseParams> {
    Kernel::new(&MODULE, name, THREADS as u32, 0)
}

pub(super) static ADD: Kernel<ElementwiseParams> = kernel("elementwise_add");
pub(super) static NARROW: Kernel<ElementwiseParams> = kernel("elementwise_narrow");
pub(super) static WIDEN: Kernel<ElementwiseParams> = kernel("elementwise_widen");
pub(super) static FILL: Kernel<ElementwiseParams> = kernel("elementwise_fill");
