//! `y = x w^T + b`.

use crate::element::{Element, dispatch, elements, widened, with_elements};
use crate::matmul::{Matrix, Output, matmul, product};
use crate::rows;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

/// Multiplies rows by a weight stored as PyTorch stores it, and adds the bias if there is one.
///
/// `x`: `(.., in_features)`, `weight`: `(out_features, in_features)`, `bias`: `(out_features)`, same dtype (bf16,
/// f32 or f64). Returns `(.., out_features)`.
///
/// Backward: `dx = dy w`, `dw = dy^T x`, both plain row-major products (candle's autograd of `x.matmul(&w.t()?)`
/// gives the second as a transposed view that is then added through the strided path), and `db` the sum of the rows
/// of `dy` (candle's reduction over leading dimensions walks them element by element).
///
/// # Errors
/// If the last dimensions differ, the weight is not a matrix, or the bias does not fit it.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => widened([x, weight, bias], |[x, weight, bias]| {
            x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
        }),
        None => widened([x, weight], |[x, weight]| x.contiguous()?.apply_op2(&weight.contiguous()?, Linear)),
    }
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

fn output_shape(x: &Layout, out: usize) -> Shape {
    let mut dims = x.dims().to_vec();
    *dims.last_mut().expect("shapes() refuses a scalar") = out;
    dims.into()
}

fn forward<T: Element>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    (rows, input, out): (usize, usize, usize),
) -> Result<Vec<T>> {
    let right = (weight, Matrix::row_major(out, input, input).transposed());
    let left = (x, Matrix::row_major(rows, input, input));
    let Some(bias) = bias else { return product(left, right, T::one()) };
    let mut y = bias.repeat(rows);
    matmul((&mut y, Matrix::row_major(rows, out, out)), left, right, T::one(), Output::Accumulate)?;
    Ok(y)
}

fn backward<T: Element>(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, input, out) = shapes(x.dims(), weight.dims())?;
    let grad_shape = Matrix::row_major(rows, out, out);
    let (dx, dw) = with_elements::<T, _>(grad, |grad| {
        let dx = with_elements(weight, |weight| {
            product((grad, grad_shape), (weight, Matrix::row_major(out, input, input)), T::one())
        })?;
        let dw = with_elements(x, |x| {
            product((grad, grad_shape.transposed()), (x, Matrix::row_major(rows, input, input)), T::one())
        })?;
        Ok((dx, dw))
    })?;
    Ok((Tensor::from_vec(dx, x.shape(), x.device())?, Tensor::from_vec(dw, weight.shape(), x.device())?))
}

fn bias_gradient<T: Element>(bias: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let mut db = vec![T::zero(); bias.elem_count()];
    with_elements::<T, _>(grad, |grad| {
        grad.chunks_exact(db.len().max(1)).for_each(|row| rows::add_to(&mut db, row));
        Ok(())
    })?;
    Tensor::from_vec(db, bias.shape(), bias.device())
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
        let y = dispatch!(x.dtype(), "linear", T => {
            T::to_cpu_storage_owned(forward::<T>(elements(x, xl)?, elements(w, wl)?, None, sizes)?)
        });
        Ok((y, output_shape(xl, sizes.2)))
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

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "oqvl-linear-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = shapes(xl.dims(), wl.dims())?;
        if bl.dims() != [sizes.2] {
            bail!("linear: the bias is {:?}, the weight gives {} features", bl.dims(), sizes.2);
        }
        let y = dispatch!(x.dtype(), "linear", T => {
            let bias = Some(elements(b, bl)?);
            T::to_cpu_storage_owned(forward::<T>(elements(x, xl)?, elements(w, wl)?, bias, sizes)?)
        });
        Ok((y, output_shape(xl, sizes.2)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        dispatch!(x.dtype(), "linear", T => {
            let (dx, dw) = backward::<T>(x, w, grad)?;
            Ok((Some(dx), Some(dw), Some(bias_gradient::<T>(b, grad)?)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, check_gradients, random};

    #[test]
    fn equals_candle_and_its_gradients_are_right() {
        for dims in [vec![1, 1], vec![3, 5], vec![2, 3, 4], vec![0, 3]] {
            let inputs = *dims.last().unwrap();
            let (x, w, b) = (random(&dims, 1), random(&[7, inputs], 2), random(&[7], 3));
            let rows: usize = dims[..dims.len() - 1].iter().product();
            if rows > 0 {
                let expected =
                    x.as_tensor().reshape((rows, inputs)).unwrap().matmul(&w.t().unwrap()).unwrap();
                let ours = linear(&x, &w, None).unwrap().reshape((rows, 7)).unwrap();
                assert_eq!(ours.to_vec2::<f64>().unwrap(), expected.to_vec2::<f64>().unwrap());
                let ours = linear(&x, &w, Some(&b)).unwrap().reshape((rows, 7)).unwrap();
                assert_same(&ours, &expected.broadcast_add(&b).unwrap(), 1e-15);
            }
            check_gradients(&[x.clone(), w.clone()], |inputs| linear(&inputs[0], &inputs[1], None));
            check_gradients(&[x, w, b], |inputs| linear(&inputs[0], &inputs[1], Some(&inputs[2])));
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (x, w) = (random(&[2, 3], 1), random(&[4, 2], 2));
        assert!(linear(&x, &w, None).unwrap_err().to_string().contains("3 features"));
        let (x, b) = (random(&[2, 2], 1), random(&[3], 3));
        assert!(linear(&x, &w, Some(&b)).unwrap_err().to_string().contains("bias"));
    }
}
