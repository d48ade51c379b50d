//! Root-mean-square normalisation.

use super::reference;
use crate::element::{Element, dense, dispatch, elements, lit, widened, with_elements};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

/// `y = x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
///
/// `x`: `(.., hidden)`, `weight`: `(hidden)`, same dtype (bf16, f32 or f64; on a GPU bf16, `hidden` a multiple of 8). Returns the shape of `x`.
///
/// # Errors
/// If the sizes differ.
///
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019; as in Qwen2.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    widened([x, weight], |[x, weight]| dense(x)?.apply_op2(&dense(weight)?, RmsNorm::new(eps)))
}

struct RmsNorm {
    eps: f64,
    #[cfg(feature = "cuda")]
    saved: super::cuda::Saved,
}

impl RmsNorm {
    fn new(eps: f64) -> Self {
        Self {
            eps,
            #[cfg(feature = "cuda")]
            saved: super::cuda::Saved::default(),
        }
    }
}

fn forward<T: Element>(x: &[T], weight: &[T], eps: T) -> Vec<T> {
    let (mut y, mut inverse) = (vec![T::zero(); x.len()], vec![T::zero(); x.len() / weight.len()]);
    reference::forward(x, weight, eps, None, &mut y, &mut inverse);
    y
}

/// Gradients of `(x, weight)`.
fn backward<T: Element>(x: &[T], weight: &[T], dy: &[T], eps: T) -> (Vec<T>, Vec<T>) {
    let num_rows = x.len() / weight.len();
    let (mut dx, mut inverse) = (vec![T::zero(); x.len()], vec![T::zero(); num_rows]);
    reference::forward(x, weight, eps, None, &mut dx, &mut inverse);
    let mut dweight = vec![T::zero(); weight.len()];
    let inputs = reference::Inputs { s: x, weight, dy, inverse: &inverse };
    reference::backward(inputs, num_rows, None, &mut dx, &mut dweight);
    (dx, dweight)
}

fn check(x: &Layout, weight: &Layout) -> Result<()> {
    let hidden = x.dims().last().copied().unwrap_or(0);
    if weight.dims() != [hidden] || hidden == 0 {
        bail!("rms_norm takes (.., hidden) and (hidden), got {:?} and {:?}", x.dims(), weight.dims());
    }
    Ok(())
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "oqvl-rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        check(xl, wl)?;
        let y = dispatch!(x.dtype(), "rms_norm", T => {
            T::to_cpu_storage_owned(forward::<T>(elements(x, xl)?, elements(w, wl)?, lit(self.eps)))
        });
        Ok((y, xl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        check(xl, wl)?;
        let y = super::cuda::forward("rms_norm", &self.saved, self.eps, (x, xl), (w, wl), None)?;
        Ok((y, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let device = x.device();
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            let inputs = [x, w, &dense(grad)?];
            let (dx, dw, _) = super::cuda::backward("rms_norm", &self.saved, self.eps, inputs, false)?;
            return Ok((Some(dx), Some(dw)));
        }
        dispatch!(x.dtype(), "rms_norm", T => {
            let (dx, dw) = with_elements(x, |x| with_elements(w, |w| with_elements(grad, |grad| {
                Ok(backward::<T>(x, w, grad, lit(self.eps)))
            })))?;
            Ok((Some(Tensor::from_vec(dx, x.shape(), device)?), Some(Tensor::from_vec(dw, w.shape(), device)?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, check_gradients, random};

    #[test]
    fn equals_the_unfused_formula_and_its_gradients_are_right() {
        for dims in [vec![1, 1], vec![3, 5], vec![2, 3, 8], vec![0, 4]] {
            let hidden = *dims.last().unwrap();
            let (x, w) = (random(&dims, 1), random(&[hidden], 2));
            if dims[0] > 0 {
                let slow = candle_nn::ops::rms_norm_slow(&x, &w, 1e-6).unwrap();
                assert_same(&rms_norm(&x, &w, 1e-6).unwrap(), &slow, 1e-12);
            }
            check_gradients(&[x, w], |inputs| rms_norm(&inputs[0], &inputs[1], 1e-6));
        }
    }
}
