//! The connector from vision patches to LLM embeddings: adaptive average pooling, then a two-layer MLP.

use crate::ModelError;
use crate::layers::{Bias, Linear};
use crate::params::{Init, ParamBuilder};
use candle_core::{Device, Result, Tensor};
use oqvl_image_prep::pooling_windows;

/// Average-pool projector. The pooling has no parameters, so the same weights serve any number of tokens.
///
/// Source: `AvgPoolProjector`, Open-Qwen2VL `prismatic/util/nn_utils.py`.
#[derive(Debug)]
pub struct AvgPoolProjector {
    fc1: Linear,
    fc2: Linear,
    grid: usize,
}

impl AvgPoolProjector {
    /// Takes `mlp_projector.0` and `mlp_projector.2` of `p`; patches come from a square grid of edge `grid`.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn new(
        vision_hidden: usize,
        hidden_size: usize,
        grid: usize,
        mut p: ParamBuilder<'_>,
    ) -> Result<Self> {
        let mut p = p.pp("mlp_projector");
        let bound = |fan_in: usize| Init::Uniform((fan_in as f64).sqrt().recip());
        Ok(Self {
            fc1: Linear::new(p.pp(0), vision_hidden, hidden_size, Bias::Yes, bound(vision_hidden))?,
            fc2: Linear::new(p.pp(2), hidden_size, hidden_size, Bias::Yes, bound(hidden_size))?,
            grid,
        })
    }

    /// Projects patch features to LLM input embeddings.
    ///
    /// `patches_bnv`: `(batch, grid * grid, vision_hidden)`. Returns `(batch, pooled_grid * pooled_grid, hidden_size)`.
    ///
    /// # Errors
    /// If the number of patches is not `grid * grid`, or `pooled_grid` is 0 or larger than the grid.
    pub fn forward(
        &self,
        patches_bnv: &Tensor,
        pooled_grid: usize,
    ) -> std::result::Result<Tensor, ModelError> {
        let (_, num_patches, _) = patches_bnv.dims3()?;
        if num_patches != self.grid * self.grid || pooled_grid == 0 || pooled_grid > self.grid {
            let (side, patches) = (self.grid, num_patches);
            let what = format!(
                "projector: {patches} patches to {pooled_grid} x {pooled_grid}, the grid has edge {side}"
            );
            return Err(ModelError::Config(what));
        }
        let pooled = match pooled_grid == self.grid {
            true => patches_bnv.clone(),
            false => {
                let matrix = pooling_matrix(self.grid, pooled_grid, patches_bnv.device())?;
                matrix.broadcast_matmul(patches_bnv)?
            }
        };
        Ok(self.fc2.forward(&self.fc1.forward(&pooled)?.gelu_erf()?)?)
    }
}

/// Adaptive average pooling of a row-major square grid as a matrix `(pooled^2, grid^2)`.
fn pooling_matrix(grid: usize, pooled: usize, device: &Device) -> Result<Tensor> {
    let windows = pooling_windows(grid, pooled);
    let mut matrix = vec![0f32; pooled * pooled * grid * grid];
    for (out_row, &(top, bottom)) in windows.iter().enumerate() {
        for (out_col, &(left, right)) in windows.iter().enumerate() {
            let weight = 1.0 / ((bottom - top) * (right - left)) as f32;
            let start = (out_row * pooled + out_col) * grid * grid;
            for row in top..bottom {
                matrix[start + row * grid + left..start + row * grid + right].fill(weight);
            }
        }
    }
    Tensor::from_vec(matrix, (pooled * pooled, grid * grid), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_averages_each_window_once() {
        for (grid, pooled) in [(27, 12), (6, 3), (6, 4), (5, 1), (4, 4)] {
            let matrix = pooling_matrix(grid, pooled, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(matrix.len(), pooled * pooled);
            for row in matrix {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
        // 27 to 12: every window is 3 x 3.
        let matrix = pooling_matrix(27, 12, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert!(matrix.iter().all(|row| row.iter().filter(|weight| **weight > 0.0).count() == 9));
    }
}
