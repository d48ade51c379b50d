//! Reductions over rows.
//!
//! A plain float sum has one order, and so runs one element at a time. These keep eight partial results, which fit
//! vector registers; their order depends on the length alone, never on the machine.

use crate::element::Element;

const LANES: usize = 8;

/// Largest element; minus infinity of an empty row. Elements that are not numbers are passed over.
pub(crate) fn max<T: Element>(row: &[T]) -> T {
    let larger = |left: T, right: T| if right > left { right } else { left };
    let mut lanes = [T::neg_infinity(); LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane = larger(*lane, *x));
    }
    lanes.iter().chain(rest).copied().fold(T::neg_infinity(), larger)
}

/// Sum of `term` over the elements.
pub(crate) fn sum<T: Element>(row: &[T], term: impl Fn(T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += term(*x));
    }
    fold(lanes) + rest.iter().map(|x| term(*x)).sum::<T>()
}

/// Sum of the products of two rows of one length.
pub(crate) fn dot<T: Element>(left: &[T], right: &[T]) -> T {
    assert_eq!(left.len(), right.len(), "a dot product takes rows of one length");
    let mut lanes = [T::zero(); LANES];
    let (lefts, rights) = (left.chunks_exact(LANES), right.chunks_exact(LANES));
    let rest = lefts.remainder().iter().zip(rights.remainder());
    for (left, right) in lefts.zip(rights) {
        lanes.iter_mut().zip(left).zip(right).for_each(|((lane, l), r)| *lane += *l * *r);
    }
    fold(lanes) + rest.map(|(l, r)| *l * *r).sum::<T>()
}

/// `sum += row`, element by element.
pub(crate) fn add_to<T: Element>(sum: &mut [T], row: &[T]) {
    assert_eq!(sum.len(), row.len(), "rows of one length are added");
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
}

fn fold<T: Element>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        let (left, right) = lanes.split_at_mut(width);
        add_to(left, &right[..width]);
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_length() {
        for len in 0..40 {
            let row: Vec<f64> = (0..len).map(|at| f64::from((at * 7) % 11) - 20.0).collect();
            let squares: f64 = row.iter().map(|x| x * x).sum();
            assert_eq!(sum(&row, |x| x * x), squares);
            assert_eq!(dot(&row, &row), squares);
            assert_eq!(max(&row), row.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
        assert_eq!(max(&[f32::NAN, 1.0]), 1.0);
        assert!(sum(&[f32::NAN; 9], |x| x).is_nan());
    }
}
