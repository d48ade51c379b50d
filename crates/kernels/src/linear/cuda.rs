//! The operation on tensors of a GPU: bf16, by cuBLASLt.

use crate::Rows;
use crate::column_sum::launch::{column_sum, partials_len};
use crate::device::{Cuda, tensors};
use crate::gemm::{Epilogue, Gemm, gemm};
use crate::matmul::Output;
use candle_core::backend::BackendStorage as _;
use candle_core::{CudaStorage, Layout, Result, Tensor, bail};
use half::bf16;

const NAME: &str = "linear";

/// `y` of these `(rows, in_features, out_features)`.
pub(super) fn forward(
    x: (&CudaStorage, &Layout),
    weight: (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
    (rows, input, out): (usize, usize, usize),
) -> Result<CudaStorage> {
    let cuda = Cuda::from_candle(x.0.device())?;
    let elements = |(storage, layout)| tensors::elements::<bf16>(NAME, storage, layout);
    let (x, weight, bias) = (elements(x)?, elements(weight)?, bias.map(elements).transpose()?);
    let (x, weight) = (cuda.read(&x)?, cuda.read(&weight)?);
    let bias = bias.as_ref().map(|bias| cuda.read(bias)).transpose()?;
    let epilogue = if bias.is_some() { Epilogue::Bias } else { Epilogue::None };
    let product = Gemm::new(rows, out, input).with_b_transposed().with_epilogue(epilogue);
    let bias = bias.as_ref().map(|bias| bias.slice());
    // SAFETY: the product writes the output whole.
    let y = unsafe {
        tensors::filled(&cuda, rows * out, |y| gemm(&cuda, &product, x.slice(), weight.slice(), bias, y))?
    };
    Ok(tensors::storage(&cuda, y))
}

/// `dx` and `dw`, from a contiguous `dy`.
pub(super) fn backward(
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    (rows, input, out): (usize, usize, usize),
) -> Result<(Tensor, Tensor)> {
    let cuda = Cuda::from_candle(x.device().as_cuda_device()?)?;
    let product = |left: &Tensor, right: &Tensor, product: Gemm, like: &Tensor| {
        tensors::with_elements::<bf16, _>(NAME, left, |left| {
            tensors::with_elements::<bf16, _>(NAME, right, |right| {
                let (left, right) = (cuda.read(&left)?, cuda.read(&right)?);
                let (left, right) = (left.slice(), right.slice());
                // SAFETY: the product writes the gradient whole.
                let gradient = unsafe {
                    tensors::filled(&cuda, like.elem_count(), |to| {
                        gemm::<bf16>(&cuda, &product, left, right, None, to)
                    })?
                };
                Ok(tensors::tensor(&cuda, gradient, like.shape()))
            })
        })
    };
    let dx = product(dy, weight, Gemm::new(rows, input, out), x)?;
    let dw = product(dy, x, Gemm::new(out, input, rows).with_a_transposed(), weight)?;
    Ok((dx, dw))
}

/// The sums of the columns of a contiguous `dy`.
pub(super) fn bias_gradient(bias: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let cuda = Cuda::from_candle(dy.device().as_cuda_device()?)?;
    let cols = bias.elem_count();
    let sizes = Rows { rows: dy.elem_count().checked_div(cols).unwrap_or(0), cols };
    let Some(num_partials) = partials_len(sizes) else { bail!("{NAME}: {sizes:?} are too large") };
    tensors::with_elements::<bf16, _>(NAME, dy, |dy| {
        let dy = cuda.read(&dy)?;
        // SAFETY: the launch writes the sums whole, and those between before it reads them. They are freed on the stream, after
        // their use.
        let db = unsafe {
            let mut partials = cuda.uninitialised::<f32>(num_partials)?;
            let mut partials = partials.slice_mut(..num_partials);
            let mut partials = cuda.write(&mut partials)?;
            tensors::filled::<bf16>(&cuda, cols, |db| {
                column_sum(&cuda, sizes, dy.slice(), partials.slice(), db, Output::Overwrite)
            })?
        };
        Ok(tensors::tensor(&cuda, db, bias.shape()))
    })
}
