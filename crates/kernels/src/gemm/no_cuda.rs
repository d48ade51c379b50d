//! The products in a program that was built without the feature `cuda`.

use super::{Gemm, GemmOutput};
use crate::device::{Cuda, Slice, SliceMut};
use candle_core::Result;
use half::bf16;

/// Runs the product on the stream of `cuda`; there is none in this build.
///
/// # Errors
/// None: there is no GPU to call this with.
pub fn gemm<O: GemmOutput>(
    cuda: &Cuda,
    _gemm: &Gemm,
    _a: Slice<'_, Cuda, bf16>,
    _b: Slice<'_, Cuda, bf16>,
    _bias: Option<Slice<'_, Cuda, O>>,
    _d: SliceMut<'_, Cuda, O>,
) -> Result<()> {
    match *cuda {}
}
