//! RMSNorm and LayerNorm on a CPU, in f32 and f64.

use crate::element::{Element, lit};
use crate::rows;

/// What LayerNorm has beyond RMSNorm.
pub(crate) struct Centre<'a, T> {
    pub(crate) bias: &'a [T],
    /// Mean of each row; written whole.
    pub(crate) mean: &'a mut [T],
}

/// What LayerNorm's backward has beyond RMSNorm's.
pub(crate) struct CentreBackward<'a, T> {
    /// Of the forward.
    pub(crate) mean: &'a [T],
    /// Sums of the gradient of the bias, as those of the gains; written whole.
    pub(crate) dbias: &'a mut [T],
}

/// What both backwards read.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a, T> {
    /// What was normalised, rows of as many channels as there are gains.
    pub(crate) s: &'a [T],
    /// Gains.
    pub(crate) weight: &'a [T],
    /// Gradient of the result.
    pub(crate) dy: &'a [T],
    /// Of the forward.
    pub(crate) inverse: &'a [T],
}

/// Writes the norm of each row of `x` to `y`, and the inverse of its deviation.
pub(crate) fn forward<T: Element>(
    x: &[T],
    weight: &[T],
    eps: T,
    centre: Option<Centre<'_, T>>,
    y: &mut [T],
    inverse: &mut [T],
) {
    let rows = x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len()));
    match centre {
        None => {
            for ((x, y), inverse) in rows.zip(inverse) {
                *inverse = inverse_rms(x, eps);
                y.iter_mut().zip(x).zip(weight).for_each(|((y, x), w)| *y = *x * *inverse * *w);
            }
        }
        Some(Centre { bias, mean }) => {
            for (((x, y), inverse), mean) in rows.zip(inverse).zip(mean) {
                (*mean, *inverse) = moments(x, eps);
                for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (*x - *mean) * *inverse * *w + *b;
                }
            }
        }
    }
}

fn inverse_rms<T: Element>(row: &[T], eps: T) -> T {
    (rows::dot(row, row) / lit(row.len() as f64) + eps).sqrt().recip()
}

/// Mean and inverse standard deviation of a row.
fn moments<T: Element>(row: &[T], eps: T) -> (T, T) {
    let count = lit(row.len() as f64);
    let mean = rows::sum(row, |x| x) / count;
    let variance = rows::sum(row, |x| (x - mean) * (x - mean)) / count;
    (mean, (variance + eps).sqrt().recip())
}

/// Writes the gradient of the rows to `ds`, and that of the gains, over `rows_per_sum` rows at a time, to the rows of `dweight`.
///
/// With `r = 1 / rms` and `h = dy w`: `ds = r h - s r^3 mean(s h)`, `dweight = sum of dy s r`. With a mean and
/// `n = (s - mean) r`: `ds = r (h - mean(h) - n mean(h n))`, `dweight = sum of dy n`.
pub(crate) fn backward<T: Element>(
    inputs: Inputs<'_, T>,
    rows_per_sum: usize,
    centre: Option<CentreBackward<'_, T>>,
    ds: &mut [T],
    dweight: &mut [T],
) {
    let Inputs { s, weight, dy, inverse } = inputs;
    let hidden = weight.len();
    let count = lit::<T>(hidden as f64);
    let (mut weighted, mut normal) = (vec![T::zero(); hidden], vec![T::zero(); hidden]);
    dweight.fill(T::zero());
    let rows = s.chunks_exact(hidden).zip(dy.chunks_exact(hidden)).zip(ds.chunks_exact_mut(hidden));
    let rows = rows.zip(inverse).enumerate();
    let sum_of = |row: usize| row / rows_per_sum * hidden..(row / rows_per_sum + 1) * hidden;
    match centre {
        None => {
            for (row, (((s, dy), ds), inverse)) in rows {
                let r = *inverse;
                weighted.iter_mut().zip(dy).zip(weight).for_each(|((h, dy), w)| *h = *dy * *w);
                let shrink = rows::dot(s, &weighted) * r * r * r / count;
                ds.iter_mut().zip(s).zip(&weighted).for_each(|((ds, s), h)| *ds = *h * r - *s * shrink);
                let dweight = &mut dweight[sum_of(row)];
                dweight.iter_mut().zip(s).zip(dy).for_each(|((dw, s), dy)| *dw += *dy * *s * r);
            }
        }
        Some(CentreBackward { mean, dbias }) => {
            dbias.fill(T::zero());
            for ((row, (((s, dy), ds), inverse)), mean) in rows.zip(mean) {
                let r = *inverse;
                normal.iter_mut().zip(s).for_each(|(n, s)| *n = (*s - *mean) * r);
                weighted.iter_mut().zip(dy).zip(weight).for_each(|((h, dy), w)| *h = *dy * *w);
                let (sum, dot) = (rows::dot(dy, weight) / count, rows::dot(&weighted, &normal) / count);
                let parts = weighted.iter().zip(&normal);
                ds.iter_mut().zip(parts).for_each(|(ds, (h, n))| *ds = r * (*h - sum - *n * dot));
                let dweight = &mut dweight[sum_of(row)];
                dweight.iter_mut().zip(&normal).zip(dy).for_each(|((dw, n), dy)| *dw += *dy * *n);
                rows::add_to(&mut dbias[sum_of(row)], dy);
            }
        }
    }
}
