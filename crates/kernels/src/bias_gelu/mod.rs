//! The activation of the projector and of the vision tower's MLP, with the bias of the layer before it.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;
pub mod reference;
mod sys;

use crate::element::{dense, dispatch, elements, lit, widened, with_elements};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

/// The forms of GELU.
///
/// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gelu {
    /// `v (1 + erf(v / sqrt(2))) / 2`: `torch.nn.GELU()`.
    Exact,
    /// `v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2`: `torch.nn.GELU(approximate="tanh")`, the `gelu_pytorch_tanh` of
    /// SigLIP's MLP.
    Tanh,
}

/// `gelu(x + bias)`, elementwise, with the exact `gelu(v) = v (1 + erf(v / sqrt(2))) / 2`, in one pass.
///
/// `x`: `(.., features)`, `bias`: `(features)`, same dtype (bf16, f32 or f64; on a GPU bf16). Returns the shape of `x`.
///
/// # Errors
/// If the bias does not fit.
///
/// Source: [`Gelu::Exact`].
pub fn bias_gelu(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    with_kind(Gelu::Exact, x, bias)
}

/// As [`bias_gelu`](fn@bias_gelu), with `gelu(v) = v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3))) / 2`.
///
/// # Errors
/// If the bias does not fit.
///
/// Source: [`Gelu::Tanh`].
pub fn bias_gelu_tanh(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    with_kind(Gelu::Tanh, x, bias)
}

fn with_kind(kind: Gelu, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    widened([x, bias], |[x, bias]| dense(x)?.apply_op2(&dense(bias)?, BiasGelu(kind)))
}

struct BiasGelu(Gelu);

/// The features of a row.
fn features(x: &[usize], bias: &[usize]) -> Result<usize> {
    match (x.last(), bias) {
        (Some(&features), &[of_bias]) if features == of_bias => Ok(features),
        _ => bail!("bias_gelu takes (.., features) and (features), got {x:?} and {bias:?}"),
    }
}

impl CustomOp2 for BiasGelu {
    fn name(&self) -> &'static str {
        match self.0 {
            Gelu::Exact => "oqvl-bias-gelu",
            Gelu::Tanh => "oqvl-bias-gelu-tanh",
        }
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
            let x = elements::<T>(x, xl)?;
            let mut y = vec![lit::<T>(0.0); x.len()];
            reference::forward(self.0, x, elements(b, bl)?, &mut y)?;
            T::to_cpu_storage_owned(y)
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
        Ok((cuda::forward(self.0, (x, xl), (b, bl), features)?, xl.shape().clone()))
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
            let (dx, db) = cuda::backward(self.0, x, bias, &dense(grad)?)?;
            return Ok((Some(dx), Some(db)));
        }
        dispatch!(x.dtype(), "bias_gelu", T => {
            let (dx, db) = with_elements(x, |x| with_elements(bias, |bias| with_elements(grad, |grad| {
                let mut dx = vec![lit::<T>(0.0); x.len()];
                let db = reference::backward::<T>(self.0, x, bias, grad, &mut dx)?;
                Ok((dx, db))
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
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};

    type Operation = fn(&Tensor, &Tensor) -> Result<Tensor>;
    type Unfused = fn(&Tensor) -> Result<Tensor>;

    /// The forms, as operations and as what they are made of.
    const OPERATIONS: [(Operation, Unfused); 2] =
        [(bias_gelu, unfused_exact), (bias_gelu_tanh, unfused_tanh)];

    fn unfused_exact(v: &Tensor) -> Result<Tensor> {
        v * (v * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?
    }

    /// candle's `gelu` has six digits of the root alone.
    fn unfused_tanh(v: &Tensor) -> Result<Tensor> {
        let inside = ((v + (v.powf(3.0)? * 0.044715)?)? * FRAC_2_PI.sqrt())?;
        v * inside.tanh()?.affine(0.5, 0.5)?
    }

    #[test]
    fn equals_the_unfused_formula_and_its_gradients_are_right() {
        for (operation, unfused) in OPERATIONS {
            for dims in [vec![1], vec![3, 5], vec![2, 3, 4], vec![0, 3], vec![3, 0]] {
                let (x, bias) = (random(&dims, 1), random(&dims[dims.len() - 1..], 2));
                let unfused = unfused(&x.as_tensor().broadcast_add(&bias).unwrap()).unwrap();
                let fused = operation(&x, &bias).unwrap();
                assert_same(&fused, &unfused, 1e-12);
                // Where there is nothing, candle has no gradients.
                if x.elem_count() > 0 {
                    assert_same_gradients(&[x.clone(), bias.clone()], &fused, &unfused, 1e-12);
                }
                check_gradients(&[x, bias], |inputs| operation(&inputs[0], &inputs[1]));
            }
        }
    }

    /// Of the exact form what C's `erfc` gives in f64, of the other what the formula gives with 40 digits, to 15 digits.
    #[test]
    fn known_values() {
        let x = Tensor::new(&[-3f64, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0], &Device::Cpu).unwrap();
        let exact = [
            -0.004_049_694_094_89,
            -0.158_655_253_931_457,
            -0.154_268_769_362_993,
            0.0,
            0.345_731_230_637_007,
            0.841_344_746_068_543,
            2.995_950_305_905_11,
        ];
        let tanh = [
            -0.003_637_392_081_773_02,
            -0.158_808_009_391_723,
            -0.154_285_990_174_856,
            0.0,
            0.345_714_009_825_144,
            0.841_191_990_608_277,
            2.996_362_607_918_23,
        ];
        for ((operation, _), expected) in OPERATIONS.into_iter().zip([exact, tanh]) {
            let expected = Tensor::new(&expected, &Device::Cpu).unwrap();
            let zeros = x.zeros_like().unwrap();
            assert_same(&operation(&x, &zeros).unwrap(), &expected, 1e-14);
            let [x, zeros] = [&x, &zeros].map(|tensor| tensor.to_dtype(DType::F32).unwrap());
            assert_same(&operation(&x, &zeros).unwrap().to_dtype(DType::F64).unwrap(), &expected, 2e-7);
        }
    }

    #[test]
    fn biases_that_do_not_fit_are_refused() {
        let x = random(&[2, 3], 1);
        for (operation, _) in OPERATIONS {
            for dims in [vec![2], vec![1, 3], vec![]] {
                let error = operation(&x, &random(&dims, 2)).unwrap_err().to_string();
                assert!(error.contains("takes (.., features) and (features)"), "{error}");
            }
            assert!(operation(&random(&[], 1), &random(&[1], 2)).is_err());
        }
    }
}
