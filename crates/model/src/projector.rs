//! The connector from vision patches to LLM embeddings: adaptive average pooling, then a two-layer MLP.

use crate::ModelError;
use crate::layers::{Bias, Linear};
use crate::params::{Init, ParamBuilder};
use candle_core::{Result, Tensor};
use oqvl_kernels::adaptive_avg_pool;

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
            false => adaptive_avg_pool(patches_bnv, pooled_grid)?,
        };
        Ok(self.fc2.forward(&self.fc1.forward(&pooled)?.gelu_erf()?)?)
    }
}
