//! Sums of the columns of a matrix: the gradient of a bias.

pub mod launch;
pub(crate) mod sys;

use crate::element::Element;
use crate::rows;

/// Sizes of a matrix, row-major and without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl Rows {
    /// Number of elements. `None` if there is no such number.
    pub fn num_elements(&self) -> Option<usize> {
        self.rows.checked_mul(self.cols)
    }
}

/// Sums the columns of `x`, `(_, cols)`, row after row.
pub(crate) fn reference<T: Element>(x: &[T], cols: usize) -> Vec<T> {
    let mut sums = vec![T::zero(); cols];
    x.chunks_exact(cols.max(1)).for_each(|row| rows::add_to(&mut sums, row));
    sums
}
