//! The candle operations on tensors of a GPU.

use super::launch::{self, Backward, Centre, CentreBackward, Forward, Norm, num_partials, partials_len};
use crate::column_sum;
use crate::device::{Cuda, tensors};
use crate::matmul::Output;
use candle_core::backend::BackendStorage as _;
use candle_core::{CudaStorage, Layout, Result, Tensor, bail};
use cudarc::driver::{CudaSlice, CudaView};
use half::bf16;
use std::sync::{Arc, Mutex};

/// What the forward keeps for the backward.
#[derive(Default)]
pub(super) struct Saved(Mutex<Option<Arc<Statistics>>>);

/// Of every row, on the device.
struct Statistics {
    inverse: CudaSlice<f32>,
    /// Not written by RMSNorm.
    mean: CudaSlice<f32>,
}

fn norm(len: usize, hidden: usize, eps: f64) -> Norm {
    Norm { rows: len.checked_div(hidden).unwrap_or(0), hidden, eps }
}

/// `y` of RMSNorm, or of LayerNorm where there is a bias.
pub(super) fn forward(
    what: &str,
    saved: &Saved,
    eps: f64,
    (x, xl): (&CudaStorage, &Layout),
    (weight, wl): (&CudaStorage, &Layout),
    bias: Option<(&CudaStorage, &Layout)>,
) -> Result<CudaStorage> {
    let cuda = Cuda::from_candle(x.device())?;
    let norm = norm(xl.shape().elem_count(), wl.shape().elem_count(), eps);
    let (x, weight) = (tensors::elements::<bf16>(what, x, xl)?, tensors::elements::<bf16>(what, weight, wl)?);
    let bias = bias.map(|(bias, layout)| tensors::elements::<bf16>(what, bias, layout)).transpose()?;
    let (x, weight) = (cuda.read(&x)?, cuda.read(&weight)?);
    let bias = bias.as_ref().map(|bias| cuda.read(bias)).transpose()?;
    let mut statistics = None;
    // SAFETY: the launch writes the output and the statistics of the norm whole; the mean of RMSNorm is never read.
    let y = unsafe {
        tensors::filled(&cuda, norm.rows * norm.hidden, |y| {
            let mut mean = None;
            let inverse = tensors::filled(&cuda, norm.rows, |inverse| {
                mean = Some(tensors::filled(&cuda, norm.rows, |mean| {
                    let centre = bias.as_ref().map(|bias| Centre { bias: bias.slice(), mean });
                    let (x, weight) = (x.slice(), weight.slice());
                    launch::forward(&cuda, norm, Forward { x, residual: None, weight, centre, y, inverse })
                })?);
                Ok(())
            })?;
            statistics = Some(Statistics { inverse, mean: mean.expect("filled above") });
            Ok(())
        })?
    };
    *saved.0.lock().expect("nothing panics while it holds this") = statistics.map(Arc::new);
    Ok(tensors::storage(&cuda, y))
}

/// Gradients of `x`, the weight and, for LayerNorm, the bias, from a contiguous `dy`.
pub(super) fn backward(
    what: &str,
    saved: &Saved,
    eps: f64,
    [x, weight, dy]: [&Tensor; 3],
    centres: bool,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let Some(saved) = saved.0.lock().expect("nothing panics while it holds this").clone() else {
        bail!("{what}: the backward on a GPU follows a forward there")
    };
    let cuda = Cuda::from_candle(x.device().as_cuda_device()?)?;
    let norm = norm(x.elem_count(), weight.elem_count(), eps);
    let num_sums = partials_len(norm)?;
    let (mut dweight, mut dbias) = (None, None);
    let dx = with_bf16(what, x, |s| {
        with_bf16(what, weight, |weight| {
            with_bf16(what, dy, |dy| {
                let (s, weight, dy) = (cuda.read(&s)?, cuda.read(&weight)?, cuda.read(&dy)?);
                let (inverse, mean) = (saved.inverse.slice(..norm.rows), saved.mean.slice(..norm.rows));
                let (inverse, mean) = (cuda.read(&inverse)?, cuda.read(&mean)?);
                // SAFETY: the launch writes the gradient and the sums it is asked for whole; those of a bias that is not there
                // are never read.
                unsafe {
                    tensors::filled(&cuda, norm.rows * norm.hidden, |ds| {
                        let mut sums_of_bias = None;
                        let sums = tensors::filled(&cuda, num_sums, |dweight| {
                            sums_of_bias = Some(tensors::filled(&cuda, num_sums, |dbias| {
                                let centre = centres
                                    .then(|| CentreBackward { mean: mean.slice(), dbias_partials: dbias });
                                let arguments = Backward {
                                    s: s.slice(),
                                    weight: weight.slice(),
                                    dy: dy.slice(),
                                    dresidual: None,
                                    inverse: inverse.slice(),
                                    ds,
                                    dweight_partials: dweight,
                                    centre,
                                };
                                launch::backward(&cuda, norm, arguments)
                            })?);
                            Ok(())
                        })?;
                        dweight = Some(column_sums(&cuda, norm, &sums)?);
                        if centres {
                            dbias = Some(column_sums(&cuda, norm, &sums_of_bias.expect("filled above"))?);
                        }
                        Ok(())
                    })
                }
            })
        })
    })?;
    let gain = |slice| tensors::tensor(&cuda, slice, weight.shape());
    Ok((tensors::tensor(&cuda, dx, x.shape()), gain(dweight.expect("summed above")), dbias.map(gain)))
}

fn with_bf16<R>(what: &str, tensor: &Tensor, f: impl FnOnce(CudaView<'_, bf16>) -> Result<R>) -> Result<R> {
    tensors::with_elements(what, tensor, f)
}

/// The gradient of a gain from its partial sums.
fn column_sums(cuda: &Cuda, norm: Norm, sums: &CudaSlice<f32>) -> Result<CudaSlice<bf16>> {
    let sizes = crate::Rows { rows: num_partials(norm), cols: norm.hidden };
    let Some(len) = column_sum::launch::partials_len(sizes) else { bail!("norm: {norm:?} is too large") };
    let sums = sums.slice(..partials_len(norm)?);
    let sums = cuda.read(&sums)?;
    // SAFETY: the launch writes the gradient whole, and the sums between before it reads them.
    unsafe {
        tensors::filled(cuda, norm.hidden, |to| {
            tensors::filled(cuda, len, |partials| {
                column_sum::launch::column_sum(cuda, sizes, sums.slice(), partials, to, Output::Overwrite)
            })?;
            Ok(())
        })
    }
}
