//! The pooling of the projector: a square grid of patches to a smaller one.

use crate::element::{Element, dispatch, elements, lit, widened, with_elements};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

/// Adaptive average pooling of a square grid of feature vectors.
///
/// `x`: `(batch, grid * grid, channels)`, patches row after row, bf16, f32 or f64. `windows`: for each of the `pooled` outputs
/// along a side the range of the `grid` inputs it is the mean of; windows may overlap. Returns
/// `(batch, pooled * pooled, channels)`.
///
/// # Errors
/// If the patches are no square grid, or a window is empty or ends outside of it.
///
/// Source: `adaptive_avg_pool2d` of PyTorch, as `AvgPoolProjector` of Open-Qwen2VL uses it.
pub fn adaptive_avg_pool(x: &Tensor, windows: &[(usize, usize)]) -> Result<Tensor> {
    let pool = AdaptiveAvgPool { windows: windows.to_vec() };
    widened([x], |[x]| x.contiguous()?.apply_op1(pool))
}

struct AdaptiveAvgPool {
    windows: Vec<(usize, usize)>,
}

/// Sizes of a call.
struct Sizes {
    batch: usize,
    grid: usize,
    channels: usize,
}

impl AdaptiveAvgPool {
    fn sizes(&self, dims: &[usize]) -> Result<Sizes> {
        let &[batch, num_patches, channels] = dims else {
            bail!("adaptive_avg_pool: expected (batch, patches, channels), got {dims:?}")
        };
        let grid = num_patches.isqrt();
        if grid * grid != num_patches {
            bail!("adaptive_avg_pool: {num_patches} patches are no square grid");
        }
        if let Some(window) = self.windows.iter().find(|(start, end)| start >= end || *end > grid) {
            bail!("adaptive_avg_pool: window {window:?} does not lie in a grid of edge {grid}");
        }
        Ok(Sizes { batch, grid, channels })
    }

    fn num_outputs(&self) -> usize {
        self.windows.len() * self.windows.len()
    }

    /// Calls `visit` with the offsets of an output and of an input that is in its window, and with the window's size.
    fn for_each_pair(
        &self,
        Sizes { batch, grid, channels }: &Sizes,
        mut visit: impl FnMut(usize, usize, usize),
    ) {
        let mut output = 0;
        for image in 0..*batch {
            for &(top, bottom) in &self.windows {
                for &(left, right) in &self.windows {
                    for row in top..bottom {
                        for col in left..right {
                            let input = ((image * grid + row) * grid + col) * channels;
                            visit(output, input, (bottom - top) * (right - left));
                        }
                    }
                    output += channels;
                }
            }
        }
    }

    fn forward<T: Element>(&self, x: &[T], sizes: &Sizes) -> Vec<T> {
        let channels = sizes.channels;
        let mut y = vec![T::zero(); sizes.batch * self.num_outputs() * channels];
        self.for_each_pair(sizes, |output, input, _| {
            let from = &x[input..input + channels];
            y[output..output + channels].iter_mut().zip(from).for_each(|(sum, value)| *sum += *value);
        });
        // After the sum, as PyTorch.
        let mut output = 0;
        for _ in 0..sizes.batch {
            for (top, bottom) in &self.windows {
                for (left, right) in &self.windows {
                    let size = lit::<T>(((bottom - top) * (right - left)) as f64);
                    y[output..output + channels].iter_mut().for_each(|sum| *sum /= size);
                    output += channels;
                }
            }
        }
        y
    }

    fn backward<T: Element>(&self, grad: &[T], sizes: &Sizes) -> Vec<T> {
        let channels = sizes.channels;
        let mut dx = vec![T::zero(); sizes.batch * sizes.grid * sizes.grid * channels];
        self.for_each_pair(sizes, |output, input, size| {
            let share = lit::<T>((size as f64).recip());
            let to = dx[input..input + channels].iter_mut();
            to.zip(&grad[output..output + channels]).for_each(|(sum, grad)| *sum += *grad * share);
        });
        dx
    }
}

impl CustomOp1 for AdaptiveAvgPool {
    fn name(&self) -> &'static str {
        "oqvl-adaptive-avg-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(layout.dims())?;
        let shape = Shape::from((sizes.batch, self.num_outputs(), sizes.channels));
        let y = dispatch!(candle_core::backend::BackendStorage::dtype(x), "adaptive_avg_pool", T => {
            T::to_cpu_storage_owned(self.forward::<T>(elements(x, layout)?, &sizes))
        });
        Ok((y, shape))
    }

    /// Where the CUDA kernel goes in.
    fn cuda_fwd(&self, _: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.sizes(layout.dims())?;
        bail!("adaptive_avg_pool: this build has no CUDA kernel for it")
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let sizes = self.sizes(x.dims())?;
        dispatch!(x.dtype(), "adaptive_avg_pool", T => {
            let dx = with_elements(grad, |grad| Ok(self.backward::<T>(grad, &sizes)))?;
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, check_gradients, random};

    /// The windows as a matrix `(pooled^2, grid^2)`, each row a mean.
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
        Tensor::new(rows, &candle_core::Device::Cpu).unwrap()
    }

    #[test]
    fn equals_the_product_with_a_matrix_and_its_gradients_are_right() {
        let cases: [(usize, &[(usize, usize)]); 4] =
            [(1, &[(0, 1)]), (5, &[(0, 5)]), (5, &[(0, 2), (1, 4), (3, 5)]), (4, &[(0, 2), (2, 4)])];
        for (grid, windows) in cases {
            let x = random(&[2, grid * grid, 3], 1);
            let expected = matrix(grid, windows).broadcast_matmul(&x).unwrap();
            assert_same(&adaptive_avg_pool(&x, windows).unwrap(), &expected, 1e-12);
            check_gradients(&[x], |inputs| adaptive_avg_pool(&inputs[0], windows));
        }
    }

    #[test]
    fn grids_and_windows_that_do_not_fit_are_refused() {
        let x = random(&[1, 9, 2], 1);
        for windows in [&[(0, 4)][..], &[(1, 1)], &[(2, 1)]] {
            let error = adaptive_avg_pool(&x, windows).unwrap_err().to_string();
            assert!(error.contains("does not lie in a grid of edge 3"), "{error}");
        }
        let error = adaptive_avg_pool(&random(&[1, 8, 2], 1), &[(0, 1)]).unwrap_err().to_string();
        assert!(error.contains("no square grid"), "{error}");
        assert!(adaptive_avg_pool(&random(&[9, 2], 1), &[(0, 1)]).is_err());
    }
}
