//! Sizes of a matrix.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_counted_as_far_as_numbers_go() {
        assert_eq!(Rows { rows: 3, cols: 5 }.num_elements(), Some(15));
        assert_eq!(Rows { rows: usize::MAX, cols: 2 }.num_elements(), None);
    }
}
