//! The operation on tensors of a GPU.

use super::launch::{backward_apart, forward_apart};
use crate::device::{Cuda, tensors};
use candle_core::backend::BackendStorage as _;
use candle_core::{CudaStorage, Layout, Result, Tensor};
use half::bf16;

const NAME: &str = "swiglu";

pub(super) fn forward(gate: &CudaStorage, gl: &Layout, up: &CudaStorage, ul: &Layout) -> Result<CudaStorage> {
    let cuda = Cuda::from_candle(gate.device())?;
    let (gate, up) = (tensors::elements::<bf16>(NAME, gate, gl)?, tensors::elements::<bf16>(NAME, up, ul)?);
    let (gate, up) = (cuda.read(&gate)?, cuda.read(&up)?);
    // SAFETY: the launch writes the output whole.
    let h = unsafe {
        let len = gl.shape().elem_count();
        tensors::filled(&cuda, len, |h| forward_apart(&cuda, gate.slice(), up.slice(), h))?
    };
    Ok(tensors::storage(&cuda, h))
}

/// Gradients of the gate and of `up`, from a contiguous `dh`.
pub(super) fn backward(gate: &Tensor, up: &Tensor, dh: &Tensor) -> Result<(Tensor, Tensor)> {
    let cuda = Cuda::from_candle(gate.device().as_cuda_device()?)?;
    let (shape, len) = (gate.shape(), gate.elem_count());
    let (dgate, dup) = tensors::with_elements::<bf16, _>(NAME, gate, |gate| {
        tensors::with_elements::<bf16, _>(NAME, up, |up| {
            tensors::with_elements::<bf16, _>(NAME, dh, |dh| {
                let (gate, up, dh) = (cuda.read(&gate)?, cuda.read(&up)?, cuda.read(&dh)?);
                let mut dup = None;
                // SAFETY: the launch writes both gradients whole.
                let dgate = unsafe {
                    tensors::filled(&cuda, len, |dgate| {
                        dup = Some(tensors::filled(&cuda, len, |dup| {
                            backward_apart(&cuda, (gate.slice(), up.slice()), dh.slice(), (dgate, dup))
                        })?);
                        Ok(())
                    })?
                };
                Ok((dgate, dup.expect("filled above")))
            })
        })
    })?;
    Ok((tensors::tensor(&cuda, dgate, shape), tensors::tensor(&cuda, dup, shape)))
}
