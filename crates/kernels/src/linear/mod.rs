//! `y = x w^T + b`.

#[cfg(feature = "cuda")]
mod cuda;

use crate::column_sum;
use crate::element::{Element, dense, dispatch, elements, widened, with_elements};
use crate::matmul::{Matrix, Output, matmul, product};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

/// Multiplies rows by a weight stored as PyTorch stores it, and adds the bias if there is one.
///
/// `x`: `(.., in_features)`, `weight`: `(out_features, in_features)`, `bias`: `(out_features)`, same dtype (bf16,
/// f32 or f64; on a GPU bf16). Returns `(.., out_features)`.
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
            dense(x)?.apply_op3(&dense(weight)?, &dense(bias)?, Linear)
        }),
        None => widened([x, weight], |[x, weight]| dense(x)?.apply_op2(&dense(weight)?, Linear)),
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

fn check_bias(bias: &Layout, out: usize) -> Result<()> {
    if bias.dims() != [out] {
        bail!("linear: the bias is {:?}, the weight gives {out} features", bias.dims());
    }
    Ok(())
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
    if rows.saturating_mul(input).saturating_mul(out) < LARGE && !has_few_rows(rows, input, out) {
        return forward_block(x, weight, bias, (rows, input, out));
    }
    let mut y = vec![T::zero(); rows * out];
    y.par_chunks_mut(ROW_BLOCK * out).zip(x.par_chunks(ROW_BLOCK * input)).try_for_each(|(y, x)| {
        let rows = x.len() / input;
        let row_by_row = has_few_rows(rows, input, out);
        let out_block = if row_by_row { FEW_ROWS_OUT_BLOCK } else { OUT_BLOCK };
        let blocks = weight.par_chunks(out_block * input).enumerate().map(|(block, weight)| {
            let (start, len) = (block * out_block, weight.len() / input);
            let bias = bias.map(|bias| &bias[start..start + len]);
            if !row_by_row {
                return forward_block(x, weight, bias, (rows, input, len));
            }
            let one = |x: &[T]| forward_block(x, weight, bias, (1, input, len));
            Ok(x.chunks(input).map(one).collect::<Result<Vec<_>>>()?.concat())
        });
        let blocks = blocks.collect::<Result<Vec<Vec<T>>>>()?;
        for (row, y) in y.chunks_mut(out).enumerate() {
            let mut rest = y;
            for block in &blocks {
                let len = block.len() / rows;
                let (here, after) = rest.split_at_mut(len);
                here.copy_from_slice(&block[row * len..(row + 1) * len]);
                rest = after;
            }
        }
        Ok::<(), candle_core::Error>(())
    })?;
    Ok(y)
}

/// Multiplications from which on a product is computed in blocks, on as many threads as there are: half a millisecond. What is
/// smaller is parallel over samples alone.
const LARGE: usize = 1 << 24;
/// Rows of a block. Blocks are of one size whatever the number of threads, so that the result does not depend on it.
const ROW_BLOCK: usize = 256;
/// Output features of a block.
const OUT_BLOCK: usize = 256;
/// Rows of a batch in which every sequence is at its next token.
const FEW_ROWS: usize = 8;
/// Output features of a block with few rows: its weights stay in a core's cache from one row to the next.
const FEW_ROWS_OUT_BLOCK: usize = 64;
/// Weights from which on it matters.
const LARGE_WEIGHT: usize = 1 << 18;

/// Whether rows are multiplied one by one: `gemm` copies the weights to where it wants them, which pays off over many rows
/// alone.
fn has_few_rows(rows: usize, input: usize, out: usize) -> bool {
    rows <= FEW_ROWS && input.saturating_mul(out) >= LARGE_WEIGHT
}

fn forward_block<T: Element>(
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    sizes: (usize, usize, usize),
) -> Result<Vec<T>> {
    let (rows, input, out) = sizes;
    if bias.is_none() {
        let right = (weight, Matrix::row_major(out, input, input).transposed());
        return product((x, Matrix::row_major(rows, input, input)), right, T::one());
    }
    let mut y = vec![T::zero(); rows * out];
    forward_into(&mut y, x, weight, bias, sizes)?;
    Ok(y)
}

fn forward_into<T: Element>(
    y: &mut [T],
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    (rows, input, out): (usize, usize, usize),
) -> Result<()> {
    let right = (weight, Matrix::row_major(out, input, input).transposed());
    let left = (x, Matrix::row_major(rows, input, input));
    let output = match bias {
        Some(bias) if out > 0 => {
            y.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(bias));
            Output::Accumulate
        }
        _ => Output::Overwrite,
    };
    matmul((y, Matrix::row_major(rows, out, out)), left, right, T::one(), output)
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
    let db = with_elements::<T, _>(grad, |grad| Ok(column_sum::reference(grad, bias.elem_count())))?;
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

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let sizes = shapes(xl.dims(), wl.dims())?;
        Ok((cuda::forward((x, xl), (w, wl), None, sizes)?, output_shape(xl, sizes.2)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let (dx, dw) = cuda::backward(x, w, &dense(grad)?, shapes(x.dims(), w.dims())?)?;
            return Ok((Some(dx), Some(dw)));
        }
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
        check_bias(bl, sizes.2)?;
        let y = dispatch!(x.dtype(), "linear", T => {
            let bias = Some(elements(b, bl)?);
            T::to_cpu_storage_owned(forward::<T>(elements(x, xl)?, elements(w, wl)?, bias, sizes)?)
        });
        Ok((y, output_shape(xl, sizes.2)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let sizes = shapes(xl.dims(), wl.dims())?;
        check_bias(bl, sizes.2)?;
        Ok((cuda::forward((x, xl), (w, wl), Some((b, bl)), sizes)?, output_shape(xl, sizes.2)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let grad = dense(grad)?;
            let (dx, dw) = cuda::backward(x, w, &grad, shapes(x.dims(), w.dims())?)?;
            return Ok((Some(dx), Some(dw), Some(cuda::bias_gradient(b, &grad)?)));
        }
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

    /// Many rows and few, with blocks that are not whole: the result is that of one product, on any number of threads.
    #[test]
    fn large_products_are_split_alike_on_any_number_of_threads() {
        for (rows, inputs, out) in [(2 * ROW_BLOCK + 5, 301, 307), (3, 511, 9 * FEW_ROWS_OUT_BLOCK + 31)] {
            assert!(rows * inputs * out >= LARGE || has_few_rows(rows, inputs, out));
            let (x, w, b) = (random(&[rows, inputs], 1), random(&[out, inputs], 2), random(&[out], 3));
            let expected = x.as_tensor().matmul(&w.t().unwrap()).unwrap();
            assert_same(&linear(&x, &w, None).unwrap(), &expected, 1e-13);
            let on_threads = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let y = pool.install(|| linear(&x, &w, Some(&b)).unwrap());
                y.to_vec2::<f64>().unwrap()
            };
            let one = on_threads(1);
            assert_eq!(one, on_threads(3));
            let one = Tensor::new(one, x.device()).unwrap();
            assert_same(&one, &expected.broadcast_add(&b).unwrap(), 1e-13);
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
