//! Sums of the columns of a matrix: the gradient of a bias.

pub mod launch;
pub(crate) mod sys;

use crate::element::Element;
use crate::rows;

/// Sums the columns of `x`, `(_, cols)`, row after row.
pub(crate) fn reference<T: Element>(x: &[T], cols: usize) -> Vec<T> {
    let mut sums = vec![T::zero(); cols];
    x.chunks_exact(cols.max(1)).for_each(|row| rows::add_to(&mut sums, row));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_summed_row_after_row() {
        let x: Vec<f64> = (0..15).map(|i| f64::from(i * i % 7) - 2.5).collect();
        for cols in [1, 3, 5, 15] {
            let sums = reference(&x, cols);
            for (col, sum) in sums.iter().enumerate() {
                let expected: f64 = (col..15).step_by(cols).map(|at| x[at]).sum();
                assert!((sum - expected).abs() < 1e-12, "column {col} of {cols}: {sum} is not {expected}");
            }
        }
        assert_eq!(reference::<f32>(&[], 3), [0.0; 3]);
        assert!(reference::<f32>(&[], 0).is_empty());
    }
}
