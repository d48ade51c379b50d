//! The gated activation of Qwen2's MLP.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;
pub(crate) mod reference;
mod sys;

use crate::element::{Element, dense, dispatch, elements, widened, with_elements};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

/// `silu(gate) * up`, elementwise, with `silu(x) = x / (1 + exp(-x))`.
///
/// `gate` and `up`: same shape and dtype (bf16, f32 or f64; on a GPU bf16, as many elements as a multiple of 8). Returns that
/// shape.
///
/// # Errors
/// If the shapes differ.
///
/// Source: Shazeer, "GLU Variants Improve Transformer", 2020.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    widened([gate, up], |[gate, up]| dense(gate)?.apply_op2(&dense(up)?, SwiGlu))
}

struct SwiGlu;

fn forward<T: Element>(gate: &[T], up: &[T]) -> Vec<T> {
    let mut h = vec![T::zero(); gate.len()];
    reference::forward(gate, up, &mut h);
    h
}

fn backward<T: Element>(gate: &[T], up: &[T], dh: &[T]) -> (Vec<T>, Vec<T>) {
    let (mut dgate, mut dup) = (vec![T::zero(); gate.len()], vec![T::zero(); gate.len()]);
    reference::backward(gate, up, dh, &mut dgate, &mut dup);
    (dgate, dup)
}

fn check(gate: &Layout, up: &Layout) -> Result<()> {
    if gate.dims() != up.dims() {
        bail!("swiglu: gate is {:?}, up is {:?}", gate.dims(), up.dims());
    }
    Ok(())
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "oqvl-swiglu"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        gl: &Layout,
        u: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        check(gl, ul)?;
        let y = dispatch!(g.dtype(), "swiglu", T => {
            T::to_cpu_storage_owned(forward::<T>(elements(g, gl)?, elements(u, ul)?))
        });
        Ok((y, gl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        g: &CudaStorage,
        gl: &Layout,
        u: &CudaStorage,
        ul: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        check(gl, ul)?;
        Ok((cuda::forward(g, gl, u, ul)?, gl.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, device) = (gate.shape(), gate.device());
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            let (dgate, dup) = cuda::backward(gate, up, &dense(grad)?)?;
            return Ok((Some(dgate), Some(dup)));
        }
        dispatch!(gate.dtype(), "swiglu", T => {
            let (dg, du) = with_elements(gate, |gate| with_elements(up, |up| with_elements(grad, |grad| {
                Ok(backward::<T>(gate, up, grad))
            })))?;
            Ok((Some(Tensor::from_vec(dg, shape, device)?), Some(Tensor::from_vec(du, shape, device)?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, check_gradients, random};

    #[test]
    fn equals_the_unfused_formula_and_its_gradients_are_right() {
        for dims in [vec![1], vec![3, 5], vec![0]] {
            let (gate, up) = (random(&dims, 1), random(&dims, 2));
            let slow = (gate.as_tensor().silu().unwrap() * up.as_tensor()).unwrap();
            assert_same(&swiglu(&gate, &up).unwrap(), &slow, 1e-12);
            check_gradients(&[gate, up], |inputs| swiglu(&inputs[0], &inputs[1]));
        }
    }

    #[test]
    fn large_inputs_stay_finite() {
        let gate = Tensor::new(&[-1000f32, 1000.0], &candle_core::Device::Cpu).unwrap();
        let y = swiglu(&gate, &gate).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y, [0.0, 1_000_000.0]);
    }
}
