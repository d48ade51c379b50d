//! Softmax cross-entropy from logits.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;
pub mod reference;
mod sys;

use crate::element::{Element, dense, dispatch, elements, lit, with_elements};
use crate::rows;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::Arc;

/// Numbers that the kernel leaves of each row: loss, z-loss, whether there is a label, whether it is the largest logit.
pub const CHANNELS: usize = 4;

/// Bytes that [`launch::cross_entropy`] takes and leaves besides the logits, for so many rows: a label and the stats.
#[must_use]
pub const fn bytes_beside_logits(rows: usize) -> usize {
    rows * (size_of::<i32>() + CHANNELS * size_of::<f32>())
}

/// Which loss is computed, by the kernel and by its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The label of rows that have none. Their gradient is 0.
    pub ignore_index: i32,
    /// What the gradient is multiplied by; losses are not.
    pub scale: f32,
    /// Weight of `log(sum(exp(logits)))^2`, which is added to the loss of each row; 0 without.
    ///
    /// Source: Chowdhery et al., "PaLM", 2022, section 5.
    pub z_loss: f32,
}

/// Mean of `log(sum(exp(logits))) - logits[target]` over the rows.
///
/// `logits`: `(num_rows, vocab_size)`, bf16 (then the loss is in f32), f32 or f64 (on a GPU bf16); `targets`: one id below `vocab_size` per row. Returns a scalar.
/// Rows without a label do not belong here: gather the labelled rows first, so that the head is not computed for
/// the others either. No rows give a loss of 0.
///
/// # Errors
/// If the number of targets differs from the number of rows or a target is out of the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let widens = logits.dtype() == DType::BF16 && logits.device().is_cpu();
    let logits = if widens { &logits.to_dtype(DType::F32)? } else { logits };
    dense(logits)?.apply_op1(CrossEntropy {
        targets: Arc::from(targets),
        #[cfg(feature = "cuda")]
        saved: cuda::Saved::default(),
    })
}

struct CrossEntropy {
    targets: Arc<[u32]>,
    #[cfg(feature = "cuda")]
    saved: cuda::Saved,
}

fn log_sum_exp<T: Element>(row: &[T]) -> T {
    let max = rows::max(row);
    max + rows::sum(row, |x| (x - max).exponential()).ln()
}

impl CrossEntropy {
    fn check(&self, dims: &[usize]) -> Result<usize> {
        let &[num_rows, vocab_size] = dims else { bail!("cross_entropy takes (rows, vocab), got {dims:?}") };
        if num_rows != self.targets.len() {
            bail!("cross_entropy: {num_rows} rows of logits, {} targets", self.targets.len());
        }
        if let Some(target) = self.targets.iter().find(|target| **target as usize >= vocab_size) {
            bail!("cross_entropy: target {target} is not below the vocabulary size {vocab_size}");
        }
        Ok(vocab_size)
    }

    fn forward<T: Element>(&self, logits: &[T], vocab_size: usize) -> T {
        let labelled = logits.chunks_exact(vocab_size).zip(self.targets.iter());
        let sum: T = labelled.map(|(row, target)| log_sum_exp(row) - row[*target as usize]).sum();
        sum / lit(self.targets.len().max(1) as f64)
    }

    /// `(softmax - one_hot) * grad / num_rows`.
    fn backward<T: Element>(&self, logits: &[T], vocab_size: usize, grad: T) -> Vec<T> {
        let scale = grad / lit(self.targets.len().max(1) as f64);
        let mut dx = Vec::with_capacity(logits.len());
        for (row, target) in logits.chunks_exact(vocab_size).zip(self.targets.iter()) {
            let log_sum = log_sum_exp(row);
            let start = dx.len();
            dx.extend(row.iter().map(|x| (*x - log_sum).exponential() * scale));
            dx[start + *target as usize] -= scale;
        }
        dx
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "oqvl-cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let vocab_size = self.check(layout.dims())?;
        let loss = dispatch!(logits.dtype(), "cross_entropy", T => {
            T::to_cpu_storage_owned(vec![self.forward::<T>(elements(logits, layout)?, vocab_size)])
        });
        Ok((loss, Shape::from(())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let vocab_size = self.check(layout.dims())?;
        let loss = cuda::forward(&self.saved, logits, layout, vocab_size, &self.targets)?;
        Ok((loss, Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            return cuda::backward(&self.saved, grad).map(Some);
        }
        let vocab_size = self.check(logits.dims())?;
        let dx = dispatch!(logits.dtype(), "cross_entropy", T => {
            let grad = grad.to_scalar::<T>()?;
            let dx = with_elements(logits, |logits| Ok(self.backward::<T>(logits, vocab_size, grad)))?;
            Tensor::from_vec(dx, logits.shape(), logits.device())?
        });
        Ok(Some(dx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, check_gradients, random};
    use candle_core::Device;

    #[test]
    fn equals_candle_and_its_gradients_are_right() {
        let logits = random(&[4, 7], 1);
        let targets = [0u32, 6, 3, 3];
        let slow =
            candle_nn::loss::cross_entropy(&logits, &Tensor::new(&targets, &Device::Cpu).unwrap()).unwrap();
        assert_same(&cross_entropy(&logits, &targets).unwrap(), &slow, 1e-12);
        check_gradients(&[logits], |inputs| cross_entropy(&inputs[0], &targets));
    }

    #[test]
    fn no_rows_and_wrong_targets() {
        let empty = Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(cross_entropy(&empty, &[]).unwrap().to_scalar::<f32>().unwrap(), 0.0);
        let logits = random(&[1, 3], 1);
        assert!(cross_entropy(&logits, &[3]).is_err());
        assert!(cross_entropy(&logits, &[0, 1]).is_err());
    }
}
