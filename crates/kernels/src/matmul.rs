//! Matrix products on strided slices.

use crate::element::Element;
use candle_core::{Result, bail};

/// A matrix inside a slice: element `(row, col)` is at `row * row_stride + col * col_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl Matrix {
    /// A matrix stored row after row, `stride` elements apart.
    pub(crate) fn row_major(rows: usize, cols: usize, stride: usize) -> Self {
        Self { rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    /// Length a slice needs to hold the matrix; `None` if there is no such length.
    fn span(&self) -> Option<usize> {
        if self.rows == 0 || self.cols == 0 {
            return Some(0);
        }
        let last_row = (self.rows - 1).checked_mul(self.row_stride)?;
        let last_col = (self.cols - 1).checked_mul(self.col_stride)?;
        last_row.checked_add(last_col)?.checked_add(1)
    }

    /// Whether a slice of `len` elements holds the matrix.
    fn fits_in(&self, len: usize) -> bool {
        self.span().is_some_and(|span| span <= len)
    }
}

/// What happens to the old content of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// It is not read.
    Overwrite,
    /// The result is added to it.
    Accumulate,
}

/// `out = scale * left right` or `out += scale * left right`, on this thread.
pub(crate) fn matmul<T: Element>(
    (out, out_shape): (&mut [T], Matrix),
    (left, left_shape): (&[T], Matrix),
    (right, right_shape): (&[T], Matrix),
    scale: T,
    output: Output,
) -> Result<()> {
    if !out_shape.fits_in(out.len()) {
        bail!("matmul output is too short: {left_shape:?} x {right_shape:?} -> {out_shape:?}");
    }
    // SAFETY: `out` holds every element its shape addresses (checked above) and is borrowed mutably.
    unsafe {
        multiply((out.as_mut_ptr(), out_shape), (left, left_shape), (right, right_shape), scale, output)
    }
}

/// `scale * left right` as a new row-major matrix, on this thread.
pub(crate) fn product<T: Element>(
    (left, left_shape): (&[T], Matrix),
    (right, right_shape): (&[T], Matrix),
    scale: T,
) -> Result<Vec<T>> {
    let (rows, cols) = (left_shape.rows, right_shape.cols);
    let shape = Matrix::row_major(rows, cols, cols);
    let Some(len) = rows.checked_mul(cols) else {
        bail!("matmul output is too large: {left_shape:?} x {right_shape:?}");
    };
    let mut out = Vec::with_capacity(len);
    // SAFETY: the vector owns memory for every element of `shape`. An overwriting product (`read_dst` is false) reads
    // none of them and writes all of them, zeros if the inner dimension is empty, so that the length may be set.
    unsafe {
        let left = (left, left_shape);
        multiply((out.as_mut_ptr(), shape), left, (right, right_shape), scale, Output::Overwrite)?;
        out.set_len(len);
    }
    Ok(out)
}

/// Checks the shapes of the inputs and multiplies.
///
/// # Safety
/// `out` must be valid for writing every element that `out_shape` addresses, and for reading them too if the product
/// is added to them, and must not overlap the inputs.
unsafe fn multiply<T: Element>(
    (out, out_shape): (*mut T, Matrix),
    (left, left_shape): (&[T], Matrix),
    (right, right_shape): (&[T], Matrix),
    scale: T,
    output: Output,
) -> Result<()> {
    let (m, n, k) = (out_shape.rows, out_shape.cols, left_shape.cols);
    if left_shape.rows != m || right_shape.rows != k || right_shape.cols != n {
        bail!("matmul shapes do not fit: {left_shape:?} x {right_shape:?} -> {out_shape:?}");
    }
    if !left_shape.fits_in(left.len()) || !right_shape.fits_in(right.len()) {
        bail!("matmul inputs are too short: {left_shape:?} x {right_shape:?} -> {out_shape:?}");
    }
    // Rows of a row-major output must not overlap; no caller can ask for anything else.
    assert!(out_shape.col_stride == 1 && (out_shape.row_stride >= n || m <= 1), "{out_shape:?}");
    if m == 0 || n == 0 {
        return Ok(());
    }
    // SAFETY: the inputs hold every element their shapes address (checked above), the output is what the caller
    // promises, and its elements are addressed once each (asserted above).
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            out,
            out_shape.col_stride as isize,
            out_shape.row_stride as isize,
            output == Output::Accumulate,
            left.as_ptr(),
            left_shape.col_stride as isize,
            left_shape.row_stride as isize,
            right.as_ptr(),
            right_shape.col_stride as isize,
            right_shape.row_stride as isize,
            T::one(),
            scale,
            false,
            false,
            false,
            ::gemm::Parallelism::None,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views() {
        // left = [[1, 2], [3, 4]] inside rows of 3; right = [[1, 0], [1, 1]] given transposed.
        let left = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let right = [1.0, 1.0, 0.0, 1.0];
        let mut out = [10.0f64; 4];
        let shapes =
            (Matrix::row_major(2, 2, 2), Matrix::row_major(2, 2, 3), Matrix::row_major(2, 2, 2).transposed());
        matmul((&mut out, shapes.0), (&left, shapes.1), (&right, shapes.2), 2.0, Output::Accumulate).unwrap();
        assert_eq!(out, [16.0, 14.0, 24.0, 18.0]);
        matmul((&mut out, shapes.0), (&left, shapes.1), (&right, shapes.2), 1.0, Output::Overwrite).unwrap();
        assert_eq!(out, [3.0, 2.0, 7.0, 4.0]);
    }

    #[test]
    fn wrong_shapes_and_short_slices_are_refused() {
        let square = Matrix::row_major(2, 2, 2);
        let (mut out, data) = ([0.0f32; 4], [0.0f32; 4]);
        let short = (&data[..3], square);
        assert!(matmul((&mut out, square), short, (&data, square), 1.0, Output::Overwrite).is_err());
        let wide = (&data[..], Matrix::row_major(1, 4, 4));
        assert!(matmul((&mut out, square), wide, (&data, square), 1.0, Output::Overwrite).is_err());
    }

    #[test]
    fn a_new_matrix_is_all_written() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 2), (17, 9, 33), (2, 3, 0), (0, 3, 2), (3, 0, 2)] {
            let (left, right) = (vec![1.0f32; m * k], vec![2.0f32; k * n]);
            let (left, right) =
                ((&left[..], Matrix::row_major(m, k, k)), (&right[..], Matrix::row_major(k, n, n)));
            assert_eq!(product(left, right, 0.5).unwrap(), vec![k as f32; m * n]);
        }
    }

    #[test]
    fn sizes_beyond_memory_are_refused() {
        let (left, right) = (Matrix::row_major(1 << 40, 0, 0), Matrix::row_major(0, 1 << 24, 1 << 24));
        assert!(product::<f32>((&[], left), (&[], right), 1.0).is_err());
        let wide = Matrix::row_major(1 << 40, 1 << 24, 1 << 24);
        assert!(matmul((&mut [0f32; 1], wide), (&[], left), (&[], right), 1.0, Output::Overwrite).is_err());
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros() {
        let mut out = [5.0f32; 1];
        let (left, right) = (Matrix::row_major(1, 0, 0), Matrix::row_major(0, 1, 1));
        matmul((&mut out, Matrix::row_major(1, 1, 1)), (&[], left), (&[], right), 1.0, Output::Overwrite)
            .unwrap();
        assert_eq!(out, [0.0]);
    }
}
