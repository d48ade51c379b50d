//! The connector from vision patches to a language model, whole.

use crate::avg_pool::adaptive_avg_pool;
use crate::bias_gelu::bias_gelu;
use crate::linear::linear;
use candle_core::{Result, Tensor};

/// Pools a square grid of patches and passes every pooled patch through two linear layers with an exact GELU between them.
///
/// `x`: `(batch, grid * grid, features)`, patches row after row; `w1`: `(hidden, features)`, `b1`: `(hidden)`, `w2`:
/// `(out, hidden)`, `b2`: `(out)`; one dtype (bf16, f32 or f64). Returns `(batch, pooled_grid * pooled_grid, out)`. A grid that
/// already has the edge `pooled_grid` is not pooled.
///
/// Equal to [`adaptive_avg_pool`], [`linear`], GELU and [`linear`]; the first bias and the GELU are one pass
/// ([`bias_gelu`](fn@bias_gelu)). Every input has a gradient.
///
/// # Errors
/// If the patches are no square grid, `pooled_grid` is 0, or the sizes of the weights do not fit.
///
/// Source: `AvgPoolProjector`, Open-Qwen2VL `prismatic/util/nn_utils.py`.
pub fn avg_pool_projector(
    x: &Tensor,
    pooled_grid: usize,
    w1: &Tensor,
    b1: &Tensor,
    w2: &Tensor,
    b2: &Tensor,
) -> Result<Tensor> {
    let (_, num_patches, _) = x.dims3()?;
    let is_pooled = pooled_grid.checked_mul(pooled_grid) == Some(num_patches) && num_patches > 0;
    let pooled = if is_pooled { x.clone() } else { adaptive_avg_pool(x, pooled_grid)? };
    let hidden = bias_gelu(&linear(&pooled, w1, None)?, b1)?;
    linear(&hidden, w2, Some(b2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, check_gradients, random};
    use candle_core::Var;

    /// For patches of 3 features: hidden size 4, output size 5.
    fn weights() -> [Var; 4] {
        [random(&[4, 3], 2), random(&[4], 3), random(&[5, 4], 4), random(&[5], 5)]
    }

    #[test]
    fn equals_its_parts_and_its_gradients_are_right() {
        let [w1, b1, w2, b2] = weights();
        for (grid, pooled_grid) in [(1, 1), (3, 2), (3, 3), (2, 3)] {
            let x = random(&[2, grid * grid, 3], 1);
            let pooled = adaptive_avg_pool(&x, pooled_grid).unwrap();
            let hidden = linear(&pooled, &w1, Some(&b1)).unwrap().gelu_erf().unwrap();
            let expected = linear(&hidden, &w2, Some(&b2)).unwrap();
            let found = avg_pool_projector(&x, pooled_grid, &w1, &b1, &w2, &b2).unwrap();
            assert_same(&found, &expected, 1e-14);
            let inputs = [x, w1.clone(), b1.clone(), w2.clone(), b2.clone()];
            check_gradients(&inputs, |t| avg_pool_projector(&t[0], pooled_grid, &t[1], &t[2], &t[3], &t[4]));
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let [w1, b1, w2, b2] = weights();
        for (dims, pooled_grid) in
            [(vec![2, 8, 3], 2), (vec![2, 9, 2], 2), (vec![2, 9, 3], 0), (vec![2, 0, 3], 0), (vec![9, 3], 2)]
        {
            assert!(avg_pool_projector(&random(&dims, 1), pooled_grid, &w1, &b1, &w2, &b2).is_err());
        }
    }
}
