//! The operation on tensors of a GPU.

use super::Pooling;
use super::launch::{self, Element};
use crate::device::{Cuda, tensors};
use candle_core::backend::BackendStorage as _;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use half::bf16;

const NAME: &str = "adaptive_avg_pool";

pub(super) fn forward(x: &CudaStorage, layout: &Layout, sizes: Pooling) -> Result<CudaStorage> {
    fn of<T: tensors::Element + Element>(
        x: &CudaStorage,
        layout: &Layout,
        sizes: Pooling,
    ) -> Result<CudaStorage> {
        let cuda = Cuda::from_candle(x.device())?;
        let x = tensors::elements::<T>(NAME, x, layout)?;
        let x = cuda.read(&x)?;
        let len = sizes.output_len().expect("the sizes were checked");
        // SAFETY: the launch writes the output whole.
        let y = unsafe { tensors::filled(&cuda, len, |y| launch::forward(&cuda, sizes, x.slice(), y))? };
        Ok(tensors::storage(&cuda, y))
    }
    match x.dtype() {
        DType::BF16 => of::<bf16>(x, layout, sizes),
        DType::F32 => of::<f32>(x, layout, sizes),
        dtype => bail!("{NAME} on a GPU takes bf16 or f32, got {dtype:?}"),
    }
}

/// `dx`, from a contiguous `dy`.
pub(super) fn backward(x: &Tensor, dy: &Tensor, sizes: Pooling) -> Result<Tensor> {
    fn of<T: tensors::Element + Element>(x: &Tensor, dy: &Tensor, sizes: Pooling) -> Result<Tensor> {
        let cuda = Cuda::from_candle(x.device().as_cuda_device()?)?;
        tensors::with_elements::<T, _>(NAME, dy, |dy| {
            let dy = cuda.read(&dy)?;
            // SAFETY: the launch writes the gradient whole.
            let dx = unsafe {
                tensors::filled(&cuda, x.elem_count(), |dx| launch::backward(&cuda, sizes, dy.slice(), dx))?
            };
            Ok(tensors::tensor(&cuda, dx, x.shape()))
        })
    }
    match x.dtype() {
        DType::BF16 => of::<bf16>(x, dy, sizes),
        DType::F32 => of::<f32>(x, dy, sizes),
        dtype => bail!("{NAME} on a GPU takes bf16 or f32, got {dtype:?}"),
    }
}
