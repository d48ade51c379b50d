//! The operation on tensors of a GPU.

use super::launch::{self, Angles, Qkv};
use super::{RopeTables, Values};
use crate::device::{Cuda, tensors};
use candle_core::backend::BackendStorage as _;
use candle_core::{CudaStorage, Layout, Result, Tensor};
use cudarc::driver::{CudaSlice, CudaView};
use half::bf16;
use std::ops::Range;
use std::sync::{Arc, Mutex};

const NAME: &str = "rope";

/// Cosines and sines of the positions of the last call, on the GPU it was on: a network asks for the same in every layer.
#[derive(Debug, Default)]
pub(super) struct Last(Mutex<Option<Arc<OnDevice>>>);

#[derive(Debug)]
struct OnDevice {
    /// Of the GPU's context.
    context: usize,
    positions: Range<usize>,
    cos: CudaSlice<f32>,
    sin: CudaSlice<f32>,
}

impl RopeTables {
    fn on_device(&self, cuda: &Cuda, positions: Range<usize>) -> Result<Arc<OnDevice>> {
        let context = cuda.stream().context().cu_ctx() as usize;
        let mut last = self.last.0.lock().expect("nothing panics while it holds this");
        match &*last {
            Some(last) if last.context == context && last.positions == positions => Ok(Arc::clone(last)),
            _ => {
                let Values { cos, sin } = self.values();
                let upload = |table: &[f64]| {
                    let rows = &table[positions.start * self.half..positions.end * self.half];
                    // The driver gives no memory of no bytes.
                    let rows = rows.iter().chain(rows.is_empty().then_some(&0.0));
                    cuda.candle().clone_htod(&rows.map(|value| *value as f32).collect::<Vec<f32>>())
                };
                let (cos, sin) = (upload(cos)?, upload(sin)?);
                Ok(Arc::clone(last.insert(Arc::new(OnDevice { context, positions, cos, sin }))))
            }
        }
    }
}

/// `x`, `(_, seq_len, head_dim)`, rotated by the angles of `positions`, of which there is one for each of a sequence; or by the
/// opposite angles.
fn rotate(
    cuda: &Cuda,
    x: &CudaView<'_, bf16>,
    tables: &RopeTables,
    positions: Range<usize>,
    is_backward: bool,
) -> Result<CudaSlice<bf16>> {
    let (len, head_dim) = (x.len(), 2 * tables.half);
    // Every row of every head is a matrix row with one head.
    let sizes = Qkv { rows: len.checked_div(head_dim).unwrap_or(0), num_heads: 1, num_kv_heads: 0, head_dim };
    let angles = tables.on_device(cuda, positions.clone())?;
    let seq_len = positions.len().max(1);
    let rows: Vec<i32> = (0..sizes.rows.max(1)).map(|row| (row % seq_len) as i32).collect();
    let rows = cuda.candle().clone_htod(&rows)?;
    let rows = rows.slice(..sizes.rows);
    let num_angles = positions.len() * tables.half;
    let (cos, sin) = (angles.cos.slice(..num_angles), angles.sin.slice(..num_angles));
    // SAFETY: the copy writes the output whole.
    let mut y = unsafe { cuda.uninitialised::<bf16>(len)? };
    cuda.candle().memcpy_dtod(x, &mut y.slice_mut(..len))?;
    {
        let (rows, cos, sin) = (cuda.read(&rows)?, cuda.read(&cos)?, cuda.read(&sin)?);
        let angles = Angles { positions: rows.slice(), cos: cos.slice(), sin: sin.slice() };
        let mut y = y.slice_mut(..len);
        let mut y = cuda.write(&mut y)?;
        if is_backward {
            launch::backward::<_, bf16>(cuda, sizes, y.slice(), angles, None)?;
        } else {
            launch::forward(cuda, sizes, y.slice(), None, angles)?;
        }
    }
    Ok(y)
}

pub(super) fn forward(
    x: &CudaStorage,
    layout: &Layout,
    tables: &RopeTables,
    positions: Range<usize>,
) -> Result<CudaStorage> {
    let cuda = Cuda::from_candle(x.device())?;
    let y = rotate(&cuda, &tensors::elements(NAME, x, layout)?, tables, positions, false)?;
    Ok(tensors::storage(&cuda, y))
}

/// `dx`, from a contiguous `dy`.
pub(super) fn backward(dy: &Tensor, tables: &RopeTables, positions: Range<usize>) -> Result<Tensor> {
    let cuda = Cuda::from_candle(dy.device().as_cuda_device()?)?;
    let dx = tensors::with_elements(NAME, dy, |dy| rotate(&cuda, &dy, tables, positions, true))?;
    Ok(tensors::tensor(&cuda, dx, dy.shape()))
}
