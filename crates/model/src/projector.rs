//! The connector from vision patches to LLM embeddings: adaptive average pooling, then a two-layer MLP.

use crate::ModelError;
use crate::params::{Init, ParamBuilder};
use candle_core::{Result, Tensor};
use oqvl_kernels::avg_pool_projector;

/// Average-pool projector. The pooling has no parameters, so the same weights serve any number of tokens.
///
/// Source: `AvgPoolProjector`, Open-Qwen2VL `prismatic/util/nn_utils.py`.
#[derive(Debug)]
pub struct AvgPoolProjector {
    /// Weight `(hidden_size, vision_hidden)` and bias `(hidden_size)`.
    fc1: (Tensor, Tensor),
    /// Weight `(hidden_size, hidden_size)` and bias `(hidden_size)`.
    fc2: (Tensor, Tensor),
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
        let mut layer = |index: usize, input: usize| -> Result<_> {
            // PyTorch draws the bias of a default linear layer like its weight.
            let init = Init::Uniform((input as f64).sqrt().recip());
            let mut p = p.pp(index);
            Ok((p.get("weight", &[hidden_size, input], init)?, p.get("bias", &[hidden_size], init)?))
        };
        Ok(Self { fc1: layer(0, vision_hidden)?, fc2: layer(2, hidden_size)?, grid })
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
        let ((w1, b1), (w2, b2)) = (&self.fc1, &self.fc2);
        Ok(avg_pool_projector(patches_bnv, pooled_grid, w1, b1, w2, b2)?)
    }
}
