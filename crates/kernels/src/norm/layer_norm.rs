//! Layer normalisation.

use crate::element::{Element, dense, dispatch, elements, lit, widened, with_elements};
use crate::rows;
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

/// Mean and inverse standard deviation of a row.
fn moments<T: Element>(row: &[T], eps: T) -> (T, T) {
    let count = lit(row.len() as f64);
    let mean = rows::sum(row, |x| x) / count;
    let variance = rows::sum(row, |x| (x - mean) * (x - mean)) / count;
    (mean, (variance + eps).sqrt().recip())
}

fn forward<T: Element>(x: &[T], weight: &[T], bias: &[T], eps: T) -> Vec<T> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(weight.len()) {
        let (mean, scale) = moments(row, eps);
        y.extend(row.iter().zip(weight).zip(bias).map(|((x, w), b)| (*x - mean) * scale * *w + *b));
    }
    y
}

/// Gradients of `(x, weight, bias)`. With `n = (x - mean) * scale` and `h = g w`:
/// `dx = scale (h - mean(h) - n mean(h n))`.
fn backward<T: Element>(x: &[T], weight: &[T], grad: &[T], eps: T) -> (Vec<T>, Vec<T>, Vec<T>) {
    let hidden = weight.len();
    let count = lit::<T>(hidden as f64);
    let mut dx = Vec::with_capacity(x.len());
    let (mut dw, mut db) = (vec![T::zero(); hidden], vec![T::zero(); hidden]);
    let (mut normal, mut weighted) = (vec![T::zero(); hidden], vec![T::zero(); hidden]);
    for (row, grad) in x.chunks_exact(hidden).zip(grad.chunks_exact(hidden)) {
        let (mean, scale) = moments(row, eps);
        normal.iter_mut().zip(row).for_each(|(normal, x)| *normal = (*x - mean) * scale);
        for ((weighted, g), w) in weighted.iter_mut().zip(grad).zip(weight) {
            *weighted = *g * *w;
        }
        let (sum, dot) = (rows::dot(grad, weight) / count, rows::dot(&weighted, &normal) / count);
        let parts = weighted.iter().zip(&normal);
        dx.extend(parts.map(|(weighted, normal)| scale * (*weighted - sum - *normal * dot)));
        for ((dw, normal), g) in dw.iter_mut().zip(&normal).zip(grad) {
            *dw += *g * *normal;
        }
        rows::add_to(&mut db, grad);
    }
    (dx, dw, db)
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
            T::to_cpu_storage_owned(forward::<T>(x, w, b, lit(self.eps)))
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
