//! The operation on tensors of a GPU.

use super::launch::{self, Arguments};
use super::{CHANNELS, Loss};
use crate::Rows;
use crate::device::{Cuda, tensors};
use crate::matmul::Output;
use candle_core::backend::BackendStorage as _;
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use std::sync::Mutex;

const NAME: &str = "cross_entropy";

/// The gradient, which the forward makes on the way.
#[derive(Default)]
pub(super) struct Saved(Mutex<Option<Tensor>>);

/// The mean loss, a scalar of f32. `targets`: one id a row, below the vocabulary.
pub(super) fn forward(
    saved: &Saved,
    logits: &CudaStorage,
    layout: &Layout,
    vocab_size: usize,
    targets: &[u32],
) -> Result<CudaStorage> {
    let cuda = Cuda::from_candle(logits.device())?;
    let device = cuda.candle();
    let sizes = Rows { rows: targets.len(), cols: vocab_size };
    let logits = tensors::elements::<bf16>(NAME, logits, layout)?;
    // The driver gives no memory of no bytes.
    let labels: Vec<i32> =
        targets.iter().chain(targets.is_empty().then_some(&0)).map(|id| *id as i32).collect();
    let labels = device.clone_htod(&labels)?;
    let labels = labels.slice(..sizes.rows);
    let share = 1.0 / sizes.rows.max(1) as f32;
    let (mut sums, mut counts) = (device.alloc_zeros::<f32>(2)?, device.alloc_zeros::<i32>(2)?);
    // SAFETY: the copy writes the gradient whole, the launch the statistics.
    let (mut gradient, mut stats) = unsafe {
        let num_stats = CHANNELS * sizes.rows;
        (cuda.uninitialised::<bf16>(logits.len())?, cuda.uninitialised::<f32>(num_stats)?)
    };
    device.memcpy_dtod(&logits, &mut gradient.slice_mut(..logits.len()))?;
    {
        let labels = cuda.read(&labels)?;
        let (mut gradient, mut stats) =
            (gradient.slice_mut(..logits.len()), stats.slice_mut(..CHANNELS * sizes.rows));
        let (mut gradient, mut stats) = (cuda.write(&mut gradient)?, cuda.write(&mut stats)?);
        let (mut sums, mut counts) = (cuda.write(&mut sums)?, cuda.write(&mut counts)?);
        let loss = Loss { ignore_index: -1, scale: share, z_loss: 0.0 };
        let arguments =
            Arguments { logits: gradient.slice(), labels: labels.slice(), scale: None, stats: stats.slice() };
        launch::cross_entropy(&cuda, sizes, loss, arguments)?;
        let totals = launch::Totals { sums: sums.slice(), counts: counts.slice(), output: Output::Overwrite };
        launch::totals(&cuda, stats.slice().as_slice(), totals)?;
    }
    let gradient = tensors::tensor(&cuda, gradient, layout.shape());
    *saved.0.lock().expect("nothing panics while it holds this") = Some(gradient);
    let mean = tensors::tensor(&cuda, sums, 2).get(0)?.affine(f64::from(share), 0.0)?;
    let (storage, layout) = mean.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => storage.try_clone(layout),
        _ => bail!("{NAME}: the loss has left the GPU"),
    }
}

/// `dx`: what the forward made, times the gradient of the loss.
pub(super) fn backward(saved: &Saved, dloss: &Tensor) -> Result<Tensor> {
    match &*saved.0.lock().expect("nothing panics while it holds this") {
        Some(gradient) => gradient.broadcast_mul(&dloss.to_dtype(DType::BF16)?),
        None => bail!("{NAME}: the backward on a GPU follows a forward there"),
    }
}
