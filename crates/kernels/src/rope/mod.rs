//! Rotary position embedding.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;
pub mod reference;
mod sys;

use crate::attention::CuSeqlens;
use crate::device::Float;
use crate::element::{Element, dense, dispatch, elements, lit, widened, with_elements};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::{Arc, OnceLock};

/// Cosines and sines of every position. Frequencies and angles are f32 whatever the dtype of the model, as networks are
/// trained with: at position 4095 angles of f64 have other cosines by 3e-4, and in bf16 angles lose their meaning. They are
/// computed when they are first asked for: the tables of a network that turns out not to fit its weights never are.
///
/// Source: `transformers`, `Qwen2RotaryEmbedding`.
#[derive(Debug, Clone)]
pub struct RopeTables {
    half: usize,
    num_positions: usize,
    theta: f64,
    values: Arc<OnceLock<Values>>,
    #[cfg(feature = "cuda")]
    last: Arc<cuda::Last>,
}

/// Row by row, `half` for each position.
#[derive(Debug)]
struct Values {
    cos: Vec<f64>,
    sin: Vec<f64>,
}

impl RopeTables {
    /// Tables for positions `0..num_positions` of heads of `head_dim` (even) features, with base `theta`.
    ///
    /// # Panics
    /// If `head_dim` is odd.
    #[must_use]
    pub fn new(head_dim: usize, num_positions: usize, theta: f64) -> Self {
        assert!(head_dim.is_multiple_of(2), "a rotation takes pairs, head_dim is {head_dim}");
        Self {
            half: head_dim / 2,
            num_positions,
            theta,
            values: Arc::default(),
            #[cfg(feature = "cuda")]
            last: Arc::default(),
        }
    }

    /// Positions there are.
    #[must_use]
    pub fn num_positions(&self) -> usize {
        self.num_positions
    }

    /// Cosines and sines, `(num_positions, head_dim / 2)` each, as [`launch`] takes them.
    #[must_use]
    pub fn cos_sin<T: Float>(&self) -> (Vec<T>, Vec<T>) {
        let Values { cos, sin } = self.values();
        let narrow = |values: &[f64]| values.iter().map(|value| T::from_f64(*value)).collect();
        (narrow(cos), narrow(sin))
    }

    fn values(&self) -> &Values {
        self.values.get_or_init(|| {
            let head_dim = 2.0 * self.half as f32;
            let frequencies: Vec<f32> = (0..self.half)
                .map(|pair| {
                    let exponent = 2.0 * pair as f32 / head_dim;
                    (self.theta.powf(f64::from(exponent)) as f32).recip()
                })
                .collect();
            let angles = (0..self.num_positions).flat_map(|position| {
                frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency))
            });
            let (cos, sin) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
            Values { cos, sin }
        })
    }
}

/// Positions of the rows of packed sequences, each of which begins at 0.
#[must_use]
pub fn positions(cu_seqlens: &CuSeqlens) -> Vec<i32> {
    cu_seqlens.boundaries().windows(2).flat_map(|pair| 0..pair[1] - pair[0]).collect()
}

/// Refuses positions that tables of `num_positions` have no angles for.
///
/// # Errors
/// Names the first of them.
pub fn check_positions(positions: &[i32], num_positions: usize) -> Result<()> {
    let is_known = |position: i32| usize::try_from(position).is_ok_and(|position| position < num_positions);
    if let Some(row) = positions.iter().position(|position| !is_known(*position)) {
        bail!("rope: position {} of row {row} is not below {num_positions}", positions[row]);
    }
    Ok(())
}

/// Rotates the pair `(x[i], x[i + head_dim / 2])` of every head by `position * theta^(-2 i / head_dim)`.
///
/// `x`: `(batch, num_heads, seq_len, head_dim)`; the position of a row is its index in `seq_len` plus
/// `first_position`. Returns the shape of `x`. The backward is the rotation by the opposite angle.
///
/// # Errors
/// If the shape does not fit the tables or a position is beyond them.
///
/// Source: Su et al., "RoFormer", 2021; half-split layout as in `transformers` Qwen2.
pub fn rope(x: &Tensor, tables: &RopeTables, first_position: usize) -> Result<Tensor> {
    let rope = Rope { tables: tables.clone(), first_position, direction: 1.0 };
    widened([x], |[x]| dense(x)?.apply_op1(rope))
}

#[derive(Clone)]
struct Rope {
    tables: RopeTables,
    first_position: usize,
    /// 1 forward, -1 backward.
    direction: f64,
}

impl Rope {
    fn rotate<T: Element>(&self, x: &[T], seq_len: usize) -> Vec<T> {
        let half = self.tables.half;
        let Values { cos, sin } = self.tables.values();
        let mut y = vec![T::zero(); x.len()];
        for (row_idx, (x, y)) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)).enumerate() {
            let start = (self.first_position + row_idx % seq_len) * half;
            let (left, right) = y.split_at_mut(half);
            for pair in 0..half {
                let cos = lit::<T>(cos[start + pair]);
                let sin = lit::<T>(self.direction * sin[start + pair]);
                left[pair] = x[pair] * cos - x[pair + half] * sin;
                right[pair] = x[pair + half] * cos + x[pair] * sin;
            }
        }
        y
    }

    /// Those of a sequence.
    #[cfg(feature = "cuda")]
    fn positions(&self, seq_len: usize) -> std::ops::Range<usize> {
        self.first_position..self.first_position + seq_len
    }

    fn check(&self, dims: &[usize]) -> Result<usize> {
        let &[_, _, seq_len, head_dim] = dims else {
            bail!("rope takes (batch, heads, seq, head_dim), got {dims:?}")
        };
        if head_dim != 2 * self.tables.half {
            bail!("rope: head_dim is {head_dim}, the tables are for {}", 2 * self.tables.half);
        }
        if self.first_position + seq_len > self.tables.num_positions {
            let last = self.first_position + seq_len;
            bail!("rope: position {last} is beyond the {} of the tables", self.tables.num_positions);
        }
        Ok(seq_len)
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "oqvl-rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let seq_len = self.check(layout.dims())?;
        let y = dispatch!(x.dtype(), "rope", T => {
            T::to_cpu_storage_owned(self.rotate::<T>(elements(x, layout)?, seq_len.max(1)))
        });
        Ok((y, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let positions = self.positions(self.check(layout.dims())?);
        Ok((cuda::forward(x, layout, &self.tables, positions)?, layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let seq_len = self.check(x.dims())?.max(1);
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let positions = self.positions(self.check(x.dims())?);
            return Ok(Some(cuda::backward(&dense(grad)?, &self.tables, positions)?));
        }
        let back = Self { direction: -self.direction, ..self.clone() };
        let dx = dispatch!(x.dtype(), "rope", T => {
            let dx = with_elements(grad, |grad| Ok(back.rotate::<T>(grad, seq_len)))?;
            Tensor::from_vec(dx, x.shape(), x.device())?
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
    fn equals_the_unfused_formula_and_its_gradients_are_right() {
        let tables = RopeTables::new(6, 9, 10_000.0);
        let x = random(&[2, 3, 4, 6], 1);
        let table =
            |values: &[f64]| Tensor::from_vec(values[5 * 3..9 * 3].to_vec(), (4, 3), &Device::Cpu).unwrap();
        let slow =
            candle_nn::rotary_emb::rope_slow(&x, &table(&tables.values().cos), &table(&tables.values().sin))
                .unwrap();
        assert_same(&rope(&x, &tables, 5).unwrap(), &slow, 1e-12);
        check_gradients(&[x], |inputs| rope(&inputs[0], &tables, 5));
    }

    #[test]
    fn a_position_beyond_the_tables_is_refused() {
        let tables = RopeTables::new(4, 3, 10_000.0);
        assert!(rope(&random(&[1, 1, 3, 4], 1), &tables, 0).is_ok());
        assert!(rope(&random(&[1, 1, 3, 4], 1), &tables, 1).is_err());
        assert!(rope(&random(&[1, 1, 3, 6], 1), &tables, 0).is_err());
    }
}
