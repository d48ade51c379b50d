//! The pooling of the projector: a square grid of patches to one of another size.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;
pub(crate) mod reference;
mod sys;

pub use launch::Pooling;

use crate::element::{dense, dispatch, elements, widened, with_elements};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

/// Adaptive average pooling of a square grid of feature vectors.
///
/// `x`: `(batch, grid * grid, channels)`, patches row after row, bf16, f32 or f64 (on a GPU bf16 or f32). Returns
/// `(batch, pooled_grid * pooled_grid, channels)`; output `i` along a side is the mean of the inputs from
/// `floor(i * grid / pooled_grid)` to `ceil((i + 1) * grid / pooled_grid)`, so that windows may overlap. `pooled_grid` may be
/// larger than the grid.
///
/// # Errors
/// If the patches are no square grid, or it or `pooled_grid` is 0.
///
/// Source: `adaptive_avg_pool2d` of PyTorch, as `AvgPoolProjector` of Open-Qwen2VL uses it.
pub fn adaptive_avg_pool(x: &Tensor, pooled_grid: usize) -> Result<Tensor> {
    widened([x], |[x]| dense(x)?.apply_op1(AdaptiveAvgPool { pooled: pooled_grid }))
}

struct AdaptiveAvgPool {
    pooled: usize,
}

impl AdaptiveAvgPool {
    fn sizes(&self, dims: &[usize]) -> Result<Pooling> {
        let &[batch, num_patches, channels] = dims else {
            bail!("adaptive_avg_pool: expected (batch, patches, channels), got {dims:?}")
        };
        let grid = num_patches.isqrt();
        if grid * grid != num_patches {
            bail!("adaptive_avg_pool: {num_patches} patches are no square grid");
        }
        if grid == 0 || self.pooled == 0 {
            bail!("adaptive_avg_pool: a grid of edge {grid} has no means of edge {}", self.pooled);
        }
        let sizes = Pooling { batch, grid, pooled: self.pooled, channels };
        if sizes.output_len().is_none() {
            bail!("adaptive_avg_pool: the output of {sizes:?} is too large");
        }
        Ok(sizes)
    }
}

impl CustomOp1 for AdaptiveAvgPool {
    fn name(&self) -> &'static str {
        "oqvl-adaptive-avg-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(layout.dims())?;
        let shape = Shape::from((sizes.batch, sizes.pooled * sizes.pooled, sizes.channels));
        let y = dispatch!(x.dtype(), "adaptive_avg_pool", T => {
            let mut y = vec![T::default(); shape.elem_count()];
            reference::forward::<T>(elements(x, layout)?, sizes, &mut y);
            T::to_cpu_storage_owned(y)
        });
        Ok((y, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let sizes = self.sizes(layout.dims())?;
        let shape = Shape::from((sizes.batch, sizes.pooled * sizes.pooled, sizes.channels));
        Ok((cuda::forward(x, layout, sizes)?, shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let sizes = self.sizes(x.dims())?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return cuda::backward(x, &dense(grad)?, sizes).map(Some);
        }
        dispatch!(x.dtype(), "adaptive_avg_pool", T => {
            let mut dx = vec![T::default(); x.elem_count()];
            with_elements(grad, |grad| {
                reference::backward::<T>(grad, sizes, &mut dx);
                Ok(())
            })?;
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, assert_same_gradients, check_gradients, random};
    use candle_core::Device;

    /// The windows, along one side, as a matrix `(pooled^2, grid^2)`, each row a mean.
    fn matrix(grid: usize, windows: &[(usize, usize)]) -> Tensor {
        let mut rows = Vec::new();
        for &(top, bottom) in windows {
            for &(left, right) in windows {
                let mut row = vec![0.0; grid * grid];
                let weight = 1.0 / ((bottom - top) * (right - left)) as f64;
                for y in top..bottom {
                    row[y * grid + left..y * grid + right].fill(weight);
                }
                rows.push(row);
            }
        }
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    #[test]
    fn equals_the_product_with_a_matrix_and_its_gradients_are_right() {
        let cases: [(usize, &[(usize, usize)]); 7] = [
            (1, &[(0, 1)]),
            (5, &[(0, 5)]),
            (5, &[(0, 2), (1, 4), (3, 5)]),
            (4, &[(0, 2), (2, 4)]),
            (3, &[(0, 1), (1, 2), (2, 3)]),
            (2, &[(0, 1), (0, 2), (1, 2)]),
            (1, &[(0, 1), (0, 1)]),
        ];
        for (grid, windows) in cases {
            let x = random(&[2, grid * grid, 3], 1);
            let expected = matrix(grid, windows).broadcast_matmul(&x).unwrap();
            let pooled = adaptive_avg_pool(&x, windows.len()).unwrap();
            assert_same(&pooled, &expected, 1e-12);
            assert_same_gradients(std::slice::from_ref(&x), &pooled, &expected, 1e-12);
            check_gradients(&[x], |inputs| adaptive_avg_pool(&inputs[0], windows.len()));
        }
    }

    #[test]
    fn there_may_be_nothing_to_pool() {
        for dims in [[0, 9, 2], [3, 9, 0]] {
            let x = random(&dims, 1);
            let y = adaptive_avg_pool(&x, 2).unwrap();
            assert_eq!(y.dims(), [dims[0], 4, dims[2]]);
            check_gradients(&[x], |inputs| adaptive_avg_pool(&inputs[0], 2));
        }
    }

    #[test]
    fn grids_that_do_not_fit_are_refused() {
        for (patches, pooled) in [(9, 0), (0, 1)] {
            let error = adaptive_avg_pool(&random(&[1, patches, 2], 1), pooled).unwrap_err().to_string();
            assert!(error.contains("has no means"), "{error}");
        }
        let error = adaptive_avg_pool(&random(&[1, 8, 2], 1), 1).unwrap_err().to_string();
        assert!(error.contains("no square grid"), "{error}");
        let error = adaptive_avg_pool(&random(&[1, 9, 2], 1), 1 << 32).unwrap_err().to_string();
        assert!(error.contains("too large"), "{error}");
        assert!(adaptive_avg_pool(&random(&[9, 2], 1), 1).is_err());
    }
}
