//! The products on a CPU.

use super::{Epilogue, Form, Gemm, Lens, Operand};
use crate::bias_gelu::reference::gelu_tanh;
use crate::element::Element;
use crate::matmul::{Matrix, matmul};
use candle_core::Result;

/// `d = epilogue(op(a) op(b) + old)` in f32 or f64, on this thread. Slices hold what the strides of `gemm` say, or more; `bias`
/// has an element for each column, where the epilogue takes one. Only elements of the output are written, none between its rows.
///
/// # Errors
/// If a slice is too short, a stride too, or there is a bias where none is taken, or none where one is.
pub fn reference<T: Element>(gemm: &Gemm, a: &[T], b: &[T], bias: Option<&[T]>, d: &mut [T]) -> Result<()> {
    gemm.check(Lens { a: a.len(), b: b.len(), bias: bias.map(<[T]>::len), d: d.len() })?;
    if gemm.m == 0 || gemm.n == 0 {
        return Ok(());
    }
    let matrix = |(rows, columns): (usize, usize), operand: Operand| {
        let stored = Matrix::row_major(rows, columns, operand.stride);
        match operand.form {
            Form::Plain => stored,
            Form::Transposed => stored.transposed(),
        }
    };
    let (left, right) = (matrix(gemm.stored_a(), gemm.a), matrix(gemm.stored_b(), gemm.b));
    let out = Matrix::row_major(gemm.m, gemm.n, gemm.d_stride);
    matmul((&mut *d, out), (a, left), (b, right), T::one(), gemm.output)?;
    for row in d.chunks_mut(gemm.d_stride).take(gemm.m) {
        for (column, element) in row[..gemm.n].iter_mut().enumerate() {
            if let Some(bias) = bias {
                *element += bias[column];
            }
            if matches!(gemm.epilogue, Epilogue::Gelu | Epilogue::GeluBias) {
                *element = gelu_tanh(*element);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::random;

    fn numbers(len: usize, seed: u64) -> Vec<f64> {
        random(&[len], seed).to_vec1().unwrap()
    }

    /// Element by element, as the definition has it.
    fn naive(gemm: &Gemm, a: &[f64], b: &[f64], bias: Option<&[f64]>, d: &mut [f64]) {
        let at = |elements: &[f64], operand: Operand, row: usize, column: usize| match operand.form {
            Form::Plain => elements[row * operand.stride + column],
            Form::Transposed => elements[column * operand.stride + row],
        };
        for row in 0..gemm.m {
            for column in 0..gemm.n {
                let terms = (0..gemm.k).map(|i| at(a, gemm.a, row, i) * at(b, gemm.b, i, column));
                let mut value: f64 = terms.sum();
                let d = &mut d[row * gemm.d_stride + column];
                if gemm.output == crate::Output::Accumulate {
                    value += *d;
                }
                value += bias.map_or(0.0, |bias| bias[column]);
                *d = match gemm.epilogue {
                    Epilogue::None | Epilogue::Bias => value,
                    Epilogue::Gelu | Epilogue::GeluBias => {
                        // tanh(z) = 1 - 2 / (exp(2 z) + 1).
                        let z =
                            (2.0 / std::f64::consts::PI).sqrt() * (value + 0.044715 * value * value * value);
                        value * (1.0 - 1.0 / ((2.0 * z).exp() + 1.0))
                    }
                };
            }
        }
    }

    #[test]
    fn equals_plain_loops() {
        let epilogues = [Epilogue::None, Epilogue::Bias, Epilogue::Gelu, Epilogue::GeluBias];
        for (m, n, k) in
            [(1, 1, 1), (7, 8, 9), (9, 7, 8), (17, 1, 33), (1, 65, 3), (3, 4, 0), (0, 3, 2), (3, 0, 2)]
        {
            for (case, epilogue) in epilogues.into_iter().enumerate() {
                let mut gemm = Gemm::new(m, n, k).with_epilogue(epilogue);
                if case % 2 == 1 {
                    gemm = gemm.with_a_transposed().accumulating();
                }
                if case >= 2 {
                    gemm = gemm.with_b_transposed();
                }
                gemm.a.stride += case;
                gemm.b.stride += 1;
                gemm.d_stride += case;
                let a = numbers((m + 1).max(k + 1) * gemm.a.stride, 1);
                let b = numbers((n + 1).max(k + 1) * gemm.b.stride, 2);
                let bias = epilogue.has_bias().then(|| numbers(n, 3));
                let mut found = numbers((m + 1) * gemm.d_stride, 4);
                let mut expected = found.clone();
                reference(&gemm, &a, &b, bias.as_deref(), &mut found[..]).unwrap();
                naive(&gemm, &a, &b, bias.as_deref(), &mut expected);
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert!((found - expected).abs() < 1e-13, "{gemm:?}, {index}: {found} is not {expected}");
                }
            }
        }
    }

    /// Of `torch.nn.functional.gelu(x, approximate="tanh")`, whose formula gives these to six digits by hand.
    #[test]
    fn known_values_of_gelu() {
        for (x, expected) in
            [(0.0, 0.0), (1.0, 0.841_192), (-1.0, -0.158_808), (3.0, 2.996_363), (-3.0, -0.003_637)]
        {
            let found: f64 = gelu_tanh(x);
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn an_empty_inner_dimension_keeps_or_clears() {
        let mut d = [5.0f32, 6.0];
        reference(&Gemm::new(1, 2, 0).accumulating(), &[], &[], None, &mut d).unwrap();
        assert_eq!(d, [5.0, 6.0]);
        reference(&Gemm::new(1, 2, 0).with_epilogue(Epilogue::Bias), &[], &[], Some(&[1.0, 2.0]), &mut d)
            .unwrap();
        assert_eq!(d, [1.0, 2.0]);
        reference(&Gemm::new(1, 2, 0), &[], &[], None, &mut d).unwrap();
        assert_eq!(d, [0.0, 0.0]);
    }
}
