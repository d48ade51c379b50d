//! The activation of the projector, with the bias of the layer before it.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;
mod sys;

use crate::column_sum;
use crate::element::{Element, dense, dispatch, elements, lit, widened, with_elements};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

/// `gelu(x + bias)`, elementwise, with the exact `gelu(v) = v (1 + erf(v / sqrt(2))) / 2`, in one pass.
///
/// `x`: `(.., features)`, `bias`: `(features)`, same dtype (bf16, f32 or f64; on a GPU bf16). Returns the shape of `x`.
///
/// # Errors
/// If the bias does not fit.
///
/// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016; `torch.nn.GELU()`.
pub fn bias_gelu(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    widened([x, bias], |[x, bias]| dense(x)?.apply_op2(&dense(bias)?, BiasGelu))
}

struct BiasGelu;

/// The features of a row.
fn features(x: &[usize], bias: &[usize]) -> Result<usize> {
    match (x.last(), bias) {
        (Some(&features), &[of_bias]) if features == of_bias => Ok(features),
        _ => bail!("bias_gelu takes (.., features) and (features), got {x:?} and {bias:?}"),
    }
}

/// The distribution function of the normal distribution.
fn normal_cdf<T: Element>(v: T) -> T {
    lit::<T>(0.5) + lit::<T>(0.5) * (v * lit(FRAC_1_SQRT_2)).error_function()
}

fn slope<T: Element>(v: T) -> T {
    let density = (v * v * lit(-0.5)).exp() * lit(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    normal_cdf(v) + v * density
}

fn forward<T: Element>(x: &[T], bias: &[T]) -> Vec<T> {
    let mut y = x.to_vec();
    for row in y.chunks_exact_mut(bias.len().max(1)) {
        for (y, bias) in row.iter_mut().zip(bias) {
            let v = *y + *bias;
            *y = v * normal_cdf(v);
        }
    }
    y
}

fn backward<T: Element>(x: &[T], bias: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
    let mut dx = dy.to_vec();
    let rows = dx.chunks_exact_mut(bias.len().max(1)).zip(x.chunks_exact(bias.len().max(1)));
    for (dx, x) in rows {
        for ((dx, x), bias) in dx.iter_mut().zip(x).zip(bias) {
            *dx *= slope(*x + *bias);
        }
    }
    let dbias = column_sum::reference(&dx, bias.len());
    (dx, dbias)
}

impl CustomOp2 for BiasGelu {
    fn name(&self) -> &'static str {
        "oqvl-bias-gelu"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        features(xl.dims(), bl.dims())?;
        let y = dispatch!(x.dtype(), "bias_gelu", T => {
            T::to_cpu_storage_owned(forward::<T>(elements(x, xl)?, elements(b, bl)?))
        });
        Ok((y, xl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let features = features(xl.dims(), bl.dims())?;
        Ok((cuda::forward(x, xl, b, bl, features)?, xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let (dx, db) = cuda::backward(x, bias, &dense(grad)?)?;
            return Ok((Some(dx), Some(db)));
        }
        dispatch!(x.dtype(), "bias_gelu", T => {
            let (dx, db) = with_elements(x, |x| with_elements(bias, |bias| with_elements(grad, |grad| {
                Ok(backward::<T>(x, bias, grad))
            })))?;
            let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
            Ok((Some(dx), Some(Tensor::from_vec(db, bias.shape(), x.device())?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, assert_same_gradients, check_gradients, random};
    use candle_core::{DType, Device};

    #[test]
    fn equals_the_unfused_formula_and_its_gradients_are_right() {
        for dims in [vec![1], vec![3, 5], vec![2, 3, 4], vec![0, 3], vec![3, 0]] {
            let (x, bias) = (random(&dims, 1), random(&dims[dims.len() - 1..], 2));
            let v = x.as_tensor().broadcast_add(&bias).unwrap();
            let halves = (&v * FRAC_1_SQRT_2).unwrap().erf().unwrap().affine(0.5, 0.5).unwrap();
            let (fused, unfused) = (bias_gelu(&x, &bias).unwrap(), (v * halves).unwrap());
            assert_same(&fused, &unfused, 1e-12);
            // Where there is nothing, candle has no gradients.
            if x.elem_count() > 0 {
                assert_same_gradients(&[x.clone(), bias.clone()], &fused, &unfused, 1e-12);
            }
            check_gradients(&[x, bias], |inputs| bias_gelu(&inputs[0], &inputs[1]));
        }
    }

    /// What C's `erfc` gives in f64, to 15 digits.
    #[test]
    fn known_values() {
        let x = Tensor::new(&[-3f64, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], &Device::Cpu).unwrap();
        let expected = [
            -0.004_049_694_094_89,
            -0.158_655_253_931_457,
            -0.154_268_769_362_993,
            0.0,
            0.345_731_230_637_007,
            0.841_344_746_068_543,
            2.995_950_305_905_11,
        ];
        let expected = Tensor::new(&expected, &Device::Cpu).unwrap();
        let zeros = x.zeros_like().unwrap();
        assert_same(&bias_gelu(&x, &zeros).unwrap(), &expected, 1e-14);
        let [x, zeros] = [&x, &zeros].map(|tensor| tensor.to_dtype(DType::F32).unwrap());
        assert_same(&bias_gelu(&x, &zeros).unwrap().to_dtype(DType::F64).unwrap(), &expected, 2e-7);
    }

    #[test]
    fn biases_that_do_not_fit_are_refused() {
        let x = random(&[2, 3], 1);
        for dims in [vec![2], vec![1, 3], vec![]] {
            let error = bias_gelu(&x, &random(&dims, 2)).unwrap_err().to_string();
            assert!(error.contains("takes (.., features) and (features)"), "{error}");
        }
        assert!(bias_gelu(&random(&[], 1), &random(&[1], 2)).is_err());
    }
}
