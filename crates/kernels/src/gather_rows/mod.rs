//! Rows of a matrix by their numbers: what carries a label, what is visual, and their way back.

pub mod launch;
pub(crate) mod sys;

use crate::device::num_rows;
use crate::element::Element;
use candle_core::{Result, bail};

/// Refuses indices that a matrix of so many rows has no row for. Negative ones stand for zeros.
///
/// # Errors
/// Names the first of them.
pub fn check_indices(indices: &[i32], rows: usize) -> Result<()> {
    let is_beyond = |index: i32| usize::try_from(index).is_ok_and(|index| index >= rows);
    if let Some(at) = indices.iter().position(|index| is_beyond(*index)) {
        bail!("gather_rows: index {} at {at} is not below {rows}", indices[at]);
    }
    Ok(())
}

/// The kernel on a CPU: makes row `r` of `to`, `(indices.len(), cols)`, row `indices[r]` of `from`, `(_, cols)`, or zeros where
/// that is negative.
///
/// # Errors
/// If a length is not that of the sizes, or an index is beyond `from`.
pub fn reference<T: Element>(from: &[T], cols: usize, indices: &[i32], to: &mut [T]) -> Result<()> {
    check_indices(indices, num_rows("gather_rows", "the matrix", from.len(), cols)?)?;
    if Some(to.len()) != indices.len().checked_mul(cols) {
        let rows = indices.len();
        bail!("gather_rows: the output has {} elements, not {cols} for each of {rows} rows", to.len());
    }
    for (to, index) in to.chunks_exact_mut(cols.max(1)).zip(indices) {
        match usize::try_from(*index) {
            Ok(index) => to.copy_from_slice(&from[index * cols..(index + 1) * cols]),
            Err(_) => to.fill(T::zero()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_zeros() {
        let from = [1.0, 2.0, 3.0, 4.0];
        let mut found = [f64::NAN; 10];
        reference(&from, 2, &[1, -1, 0, 1, i32::MIN], &mut found).unwrap();
        assert_eq!(found, [3.0, 4.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0]);
        reference(&from, 2, &[], &mut []).unwrap();
        reference(&[], 2, &[-1], &mut found[..2]).unwrap();
        assert_eq!(found[..2], [0.0, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal = |len: usize, cols: usize, indices: &[i32]| {
            let mut to = vec![0f32; indices.len() * cols];
            reference(&vec![0f32; len], cols, indices, &mut to).unwrap_err().to_string()
        };
        assert!(refusal(4, 2, &[0, 2]).contains("index 2 at 1 is not below 2"));
        assert!(refusal(5, 2, &[]).contains("5 elements, which are no rows of 2"));
        assert!(refusal(5, 0, &[]).contains("no rows of 0"));
        assert!(refusal(0, 0, &[0]).contains("index 0 at 0"));
        let refusal = reference(&[0f32; 2], 2, &[0, -1], &mut [0.0; 2]).unwrap_err().to_string();
        assert!(refusal.contains("the output has 2 elements, not 2 for each of 2 rows"), "{refusal}");
    }
}
