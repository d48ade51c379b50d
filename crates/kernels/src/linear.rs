//! `y = x w^T`.

use crate::element::{Element, dispatch, elements, with_elements};
use crate::matmul::{Matrix, Output, matmul};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

/// Multiplies rows by a weight stored as PyTorch stores it.
///
/// `x`: `(.., in_features)`, `weight`: `(out_features, in_features)`, same dtype (f32 or f64).
/// Returns `(.., out_features)`.
///
/// Backward: `dx = dy w`, `dw = dy^T x`, both plain row-major products (candle's autograd of `x.matmul(&w.t()?)`
/// gives the second as a transposed view that is then added through the strided path).
///
/// # Errors
/// If the last dimensions differ or the weight is not a matrix.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, Linear)
}

struct Linear;

/// `(rows, in_features, out_features)`.
fn shapes(x: &[usize], weight: &[usize]) -> Result<(usize, usize, usize)> {
    let (Some((&features, leading)), &[out, input]) = (x.split_last(), weight) else {
        bail!("linear takes (.., in) and (out, in), got {x:?} and {weight:?}")
    };
    if features != input {
        bail!("linear: x has {features} features, the weight takes {input}");
    }
    Ok((leading.iter().product(), input, out))
}

fn forward<T: Element>(x: &[T], weight: &[T], (rows, input, out): (usize, usize, usize)) -> Result<Vec<T>> {
    let mut y = vec![T::zero(); rows * out];
    let right = (weight, Matrix::row_major(out, input, input).transposed());
    let left = (x, Matrix::row_major(rows, input, input));
    matmul((&mut y, Matrix::row_major(rows, out, out)), left, right, T::one(), Output::Overwrite)?;
    Ok(y)
}

fn backward<T: Element>(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, input, out) = shapes(x.dims(), weight.dims())?;
    let (mut dx, mut dw) = (vec![T::zero(); rows * input], vec![T::zero(); out * input]);
    with_elements::<T, _>(grad, |grad| {
        let grad_shape = Matrix::row_major(rows, out, out);
        with_elements(weight, |weight| {
            let right = (weight, Matrix::row_major(out, input, input));
            let left = (grad, grad_shape);
            matmul((&mut dx, Matrix::row_major(rows, input, input)), left, right, T::one(), Output::Overwrite)
        })?;
        with_elements(x, |x| {
            let right = (x, Matrix::row_major(rows, input, input));
            let left = (grad, grad_shape.transposed());
            matmul((&mut dw, Matrix::row_major(out, input, input)), left, right, T::one(), Output::Overwrite)
        })
    })?;
    Ok((Tensor::from_vec(dx, x.shape(), x.device())?, Tensor::from_vec(dw, weight.shape(), x.device())?))
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "oqvl-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = shapes(xl.dims(), wl.dims())?;
        let mut dims = xl.dims().to_vec();
        *dims.last_mut().expect("shapes() refused a scalar") = sizes.2;
        let y = dispatch!(x.dtype(), "linear", T => {
            T::to_cpu_storage_owned(forward::<T>(elements(x, xl)?, elements(w, wl)?, sizes)?)
        });
        Ok((y, dims.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = dispatch!(x.dtype(), "linear", T => backward::<T>(x, w, grad)?);
        Ok((Some(dx), Some(dw)))
    }
}

use candle_core::backend::BackendStorage as _;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{check_gradients, random};

    #[test]
    fn equals_candle_and_its_gradients_are_right() {
        for dims in [vec![1, 1], vec![3, 5], vec![2, 3, 4], vec![0, 3]] {
            let inputs = *dims.last().unwrap();
            let (x, w) = (random(&dims, 1), random(&[7, inputs], 2));
            let rows: usize = dims[..dims.len() - 1].iter().product();
            if rows > 0 {
                let expected =
                    x.as_tensor().reshape((rows, inputs)).unwrap().matmul(&w.t().unwrap()).unwrap();
                let ours = linear(&x, &w).unwrap().reshape((rows, 7)).unwrap();
                assert_eq!(ours.to_vec2::<f64>().unwrap(), expected.to_vec2::<f64>().unwrap());
            }
            check_gradients(&[x, w], |inputs| linear(&inputs[0], &inputs[1]));
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, w) = (random(&[2, 3], 1), random(&[4, 2], 2));
        assert!(linear(&x, &w).unwrap_err().to_string().contains("3 features"));
    }
}
