//! A row-major product as cuBLASLt, which counts down columns, is told it.
//!
//! A row-major matrix is, in the same memory, its transpose counted column after column. So the transposed product is asked for:
//! `D^T = op(B)^T op(A)^T`, with the operands exchanged. A bias, an element for each column of `D`, then is an element for each
//! row of `D^T`, which is the bias that cuBLASLt has.

use super::{Form, Gemm};

/// A matrix counted column after column: element `(row, column)` is at `row + column * stride`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
}

/// An input: how it is stored, and whether its transpose is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) layout: Layout,
    pub(super) form: Form,
}

/// The product `op(first) op(second)`, counted column after column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ColumnMajor {
    /// `B` of the row-major product.
    pub(super) first: Input,
    /// `A` of the row-major product.
    pub(super) second: Input,
    pub(super) output: Layout,
}

impl ColumnMajor {
    pub(super) fn of(gemm: &Gemm) -> Self {
        let input = |(rows, columns): (usize, usize), operand: super::Operand| Input {
            layout: Layout { rows: columns, columns: rows, stride: operand.stride },
            form: operand.form,
        };
        Self {
            first: input(gemm.stored_b(), gemm.b),
            second: input(gemm.stored_a(), gemm.a),
            output: Layout { rows: gemm.n, columns: gemm.m, stride: gemm.d_stride },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{Epilogue, Operand, reference};
    use crate::matmul::Output;

    impl Layout {
        fn at<T: Copy>(&self, elements: &[T], row: usize, column: usize) -> T {
            assert!(row < self.rows && column < self.columns && self.stride >= self.rows);
            elements[row + column * self.stride]
        }
    }

    impl Input {
        /// Element `(row, column)` of what is multiplied.
        fn at(&self, elements: &[f64], row: usize, column: usize) -> f64 {
            match self.form {
                Form::Plain => self.layout.at(elements, row, column),
                Form::Transposed => self.layout.at(elements, column, row),
            }
        }

        /// Rows and columns of what is multiplied.
        fn shape(&self) -> (usize, usize) {
            self.form.of(self.layout.rows, self.layout.columns)
        }
    }

    /// What the manual of cuBLASLt says of `cublasLtMatmul`, with the bias broadcast to all columns.
    fn run(
        product: ColumnMajor,
        gemm: &Gemm,
        first: &[f64],
        second: &[f64],
        bias: Option<&[f64]>,
        d: &mut [f64],
    ) {
        let ((m, k), (inner, n)) = (product.first.shape(), product.second.shape());
        assert_eq!((inner, m, n), (k, product.output.rows, product.output.columns));
        for row in 0..m {
            for column in 0..n {
                let terms =
                    (0..k).map(|at| product.first.at(first, row, at) * product.second.at(second, at, column));
                let mut value: f64 = terms.sum();
                if gemm.output == Output::Accumulate {
                    value += product.output.at(d, row, column);
                }
                value += bias.map_or(0.0, |bias| bias[row]);
                if matches!(gemm.epilogue, Epilogue::Gelu | Epilogue::GeluBias) {
                    let inside = std::f64::consts::FRAC_2_PI.sqrt() * (value + 0.044715 * value.powi(3));
                    value = 0.5 * value * (1.0 + inside.tanh());
                }
                d[row + column * product.output.stride] = value;
            }
        }
    }

    fn numbers(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|at| ((at * 7 + seed * 3) % 11) as f64 / 4.0 - 1.0).collect()
    }

    fn check(gemm: &Gemm) {
        let span =
            |(rows, columns): (usize, usize), stride| super::super::span(rows, columns, stride).unwrap();
        let a = numbers(span(gemm.stored_a(), gemm.a.stride), 1);
        let b = numbers(span(gemm.stored_b(), gemm.b.stride), 2);
        let bias = gemm.epilogue.has_bias().then(|| numbers(gemm.n, 3));
        let mut d = numbers(span((gemm.m, gemm.n), gemm.d_stride), 4);
        let mut expected = d.clone();
        reference(gemm, &a, &b, bias.as_deref(), &mut expected).unwrap();
        run(ColumnMajor::of(gemm), gemm, &b, &a, bias.as_deref(), &mut d);
        for (found, expected) in d.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-13, "{gemm:?}: {found} is not {expected}");
        }
    }

    #[test]
    fn the_transposed_product_is_the_same() {
        use Epilogue::{Bias, Gelu, GeluBias, None};
        let forms = [Form::Plain, Form::Transposed];
        let sizes = [
            (1, 1, 1),
            (2, 3, 4),
            (4, 2, 3),
            (3, 4, 2),
            (1, 5, 2),
            (5, 1, 2),
            (2, 2, 0),
            (0, 2, 2),
            (2, 0, 2),
        ];
        for (m, n, k) in sizes {
            for (a_form, b_form) in forms.into_iter().flat_map(|a| forms.map(|b| (a, b))) {
                for gap in [0, 3] {
                    for output in [Output::Overwrite, Output::Accumulate] {
                        for epilogue in [None, Bias, Gelu, GeluBias] {
                            let operand = |form: Form, rows: usize, columns: usize| Operand {
                                form,
                                stride: form.of(rows, columns).1.max(1) + gap,
                            };
                            let (a, b) = (operand(a_form, m, k), operand(b_form, k, n));
                            check(&Gemm { m, n, k, a, b, d_stride: n.max(1) + gap, output, epilogue });
                        }
                    }
                }
            }
        }
    }

    /// The product of `linear`, by hand: `y = x w^T`, rows 5, 3 features to 2.
    #[test]
    fn a_linear_layer() {
        let product = ColumnMajor::of(&Gemm::new(5, 2, 3).with_b_transposed());
        let layout = |rows, columns, stride| Layout { rows, columns, stride };
        let (first, second) = (layout(3, 2, 3), layout(3, 5, 3));
        assert_eq!(product.first, Input { layout: first, form: Form::Transposed });
        assert_eq!(product.second, Input { layout: second, form: Form::Plain });
        assert_eq!(product.output, layout(2, 5, 2));
    }
}
