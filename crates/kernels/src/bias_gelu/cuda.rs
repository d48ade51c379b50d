//! The operation on tensors of a GPU.

use super::{Gelu, launch};
use crate::Rows;
use crate::column_sum::launch::{BiasGradient, partials_len};
use crate::device::{Cuda, tensors};
use crate::matmul::Output;
use candle_core::backend::BackendStorage as _;
use candle_core::{CudaStorage, Layout, Result, Tensor, bail};
use half::bf16;

const NAME: &str = "bias_gelu";

fn rows(num_elements: usize, cols: usize) -> Rows {
    Rows { rows: num_elements.checked_div(cols).unwrap_or(0), cols }
}

pub(super) fn forward(
    kind: Gelu,
    (x, xl): (&CudaStorage, &Layout),
    (bias, bl): (&CudaStorage, &Layout),
    cols: usize,
) -> Result<CudaStorage> {
    let cuda = Cuda::from_candle(x.device())?;
    let (x, bias) = (tensors::elements::<bf16>(NAME, x, xl)?, tensors::elements::<bf16>(NAME, bias, bl)?);
    let (x, bias) = (cuda.read(&x)?, cuda.read(&bias)?);
    let len = xl.shape().elem_count();
    // SAFETY: the launch writes the output whole.
    let y = unsafe {
        tensors::filled(&cuda, len, |y| {
            launch::forward(&cuda, rows(len, cols), kind, x.slice(), bias.slice(), y)
        })?
    };
    Ok(tensors::storage(&cuda, y))
}

/// `dx` and `dbias`, from a contiguous `dy`.
pub(super) fn backward(kind: Gelu, x: &Tensor, bias: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let cuda = Cuda::from_candle(x.device().as_cuda_device()?)?;
    let sizes = rows(x.elem_count(), bias.elem_count());
    let Some(num_partials) = partials_len(sizes) else { bail!("{NAME}: {sizes:?} are too large") };
    let (dx, dbias) = tensors::with_elements::<bf16, _>(NAME, x, |x| {
        tensors::with_elements::<bf16, _>(NAME, bias, |bias| {
            tensors::with_elements::<bf16, _>(NAME, dy, |dy| {
                let (x, bias, dy) = (cuda.read(&x)?, cuda.read(&bias)?, cuda.read(&dy)?);
                let inputs = (x.slice(), bias.slice(), dy.slice());
                // SAFETY: the launch writes both gradients whole, and the sums between before it reads them. They are freed on
                // the stream, after their use.
                unsafe {
                    let mut partials = cuda.uninitialised::<f32>(num_partials)?;
                    let mut partials = partials.slice_mut(..num_partials);
                    let mut partials = cuda.write(&mut partials)?;
                    let mut dx = None;
                    let dbias = tensors::filled::<bf16>(&cuda, sizes.cols, |dbias| {
                        dx = Some(tensors::filled(&cuda, inputs.0.len(), |dx| {
                            let (partials, output) = (partials.slice(), Output::Overwrite);
                            let to_dbias = BiasGradient { partials, dbias, output };
                            launch::backward(&cuda, sizes, kind, inputs, dx, to_dbias)
                        })?);
                        Ok(())
                    })?;
                    Ok((dx.expect("filled above"), dbias))
                }
            })
        })
    })?;
    Ok((tensors::tensor(&cuda, dx, x.shape()), tensors::tensor(&cuda, dbias, bias.shape())))
}
