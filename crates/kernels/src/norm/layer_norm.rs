//! Layer normalisation.

use super::reference;
use crate::element::{Element, dense, dispatch, elements, lit, widened, with_elements};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

/// `y = (x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, with the biased variance.
///
/// `x`: `(.., hidden)`, `weight` and `bias`: `(hidden)`, same dtype (bf16, f32 or f64; on a GPU bf16, `hidden` a multiple of 8).
/// Returns the shape of `x`.
///
/// # Errors
/// If the sizes differ.
///
/// Source: Ba, Kiros and Hinton, "Layer Normalization", 2016; as `torch.nn.LayerNorm`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    widened([x, weight, bias], |[x, weight, bias]| {
        dense(x)?.apply_op3(&dense(weight)?, &dense(bias)?, LayerNorm::new(eps))
    })
}

struct LayerNorm {
    eps: f64,
    #[cfg(feature = "cuda")]
    saved: super::cuda::Saved,
}

impl LayerNorm {
    fn new(eps: f64) -> Self {
        Self {
            eps,
            #[cfg(feature = "cuda")]
            saved: super::cuda::Saved::default(),
        }
    }
}

/// `y`, with the mean and the inverse deviation of each row.
fn forward<T: Element>(x: &[T], weight: &[T], bias: &[T], eps: T) -> (Vec<T>, Vec<T>, Vec<T>) {
    let num_rows = x.len() / weight.len();
    let (mut mean, mut inverse) = (vec![T::zero(); num_rows], vec![T::zero(); num_rows]);
    let mut y = vec![T::zero(); x.len()];
    let centre = reference::Centre { bias, mean: &mut mean };
    reference::forward(x, weight, eps, Some(centre), &mut y, &mut inverse);
    (y, mean, inverse)
}

/// Gradients of `(x, weight, bias)`.
fn backward<T: Element>(x: &[T], weight: &[T], dy: &[T], eps: T) -> (Vec<T>, Vec<T>, Vec<T>) {
    let (mut dx, mean, inverse) = forward(x, weight, weight, eps);
    let (mut dweight, mut dbias) = (vec![T::zero(); weight.len()], vec![T::zero(); weight.len()]);
    let inputs = reference::Inputs { s: x, weight, dy, inverse: &inverse };
    let centre = reference::CentreBackward { mean: &mean, dbias: &mut dbias };
    reference::backward(inputs, inverse.len(), Some(centre), &mut dx, &mut dweight);
    (dx, dweight, dbias)
}

fn check(x: &Layout, weight: &Layout, bias: &Layout) -> Result<()> {
    let hidden = x.dims().last().copied().unwrap_or(0);
    if weight.dims() != [hidden] || bias.dims() != [hidden] || hidden == 0 {
        bail!("layer_norm takes (.., hidden) and (hidden) twice, got {:?}, {:?}", x.dims(), weight.dims());
    }
    Ok(())
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "oqvl-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        check(xl, wl, bl)?;
        let y = dispatch!(x.dtype(), "layer_norm", T => {
            let (x, w, b) = (elements(x, xl)?, elements(w, wl)?, elements(b, bl)?);
            T::to_cpu_storage_owned(forward::<T>(x, w, b, lit(self.eps)).0)
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
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        check(xl, wl, bl)?;
        let y = super::cuda::forward("layer_norm", &self.saved, self.eps, (x, xl), (w, wl), Some((b, bl)))?;
        Ok((y, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let device = x.device();
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            let inputs = [x, w, &dense(grad)?];
            let (dx, dw, db) = super::cuda::backward("layer_norm", &self.saved, self.eps, inputs, true)?;
            return Ok((Some(dx), Some(dw), db));
        }
        dispatch!(x.dtype(), "layer_norm", T => {
            let (dx, dw, db) = with_elements(x, |x| with_elements(w, |w| with_elements(grad, |grad| {
                Ok(backward::<T>(x, w, grad, lit(self.eps)))
            })))?;
            let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), device).map(Some);
            Ok((tensor(dx, x)?, tensor(dw, w)?, tensor(db, b)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, check_gradients, random};

    #[test]
    fn equals_the_unfused_formula_and_its_gradients_are_right() {
        for dims in [vec![2, 2], vec![3, 5], vec![2, 3, 8], vec![0, 4]] {
            let hidden = *dims.last().unwrap();
            let (x, w, b) = (random(&dims, 1), random(&[hidden], 2), random(&[hidden], 3));
            if dims[0] > 0 {
                let slow = candle_nn::ops::layer_norm_slow(&x, &w, &b, 1e-6).unwrap();
                assert_same(&layer_norm(&x, &w, &b, 1e-6).unwrap(), &slow, 1e-12);
            }
            check_gradients(&[x, w, b], |inputs| layer_norm(&inputs[0], &inputs[1], &inputs[2], 1e-6));
        }
    }
}
