//! The kernels of `bias_gelu.cu` on a CPU, in f32 and f64.

use super::Gelu;
use crate::column_sum;
use crate::element::{Element, lit};
use candle_core::{Result, bail};
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI, FRAC_2_SQRT_PI};

/// The factor of `v^3` in the tanh form.
const CUBIC: f64 = 0.044715;
/// Where the square of `v` stops to count in the slope of the tanh form: long before, `exp(-2 |u|)` is 0 in f64 too.
const MAX_SQUARE: f64 = 1024.0;

/// `y = gelu(x + bias)`. `x` and `y`: `(rows, cols)`, `bias`: `(cols)`. `y` is written whole.
///
/// # Errors
/// If lengths do not fit.
pub fn forward<T: Element>(kind: Gelu, x: &[T], bias: &[T], y: &mut [T]) -> Result<()> {
    check(bias.len(), [x.len(), y.len()])?;
    let gelu = match kind {
        Gelu::Exact => gelu_exact::<T>,
        Gelu::Tanh => gelu_tanh::<T>,
    };
    let cols = bias.len().max(1);
    for (y, x) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
        for ((y, x), bias) in y.iter_mut().zip(x).zip(bias) {
            *y = gelu(*x + *bias);
        }
    }
    Ok(())
}

/// The gradients of [`forward`]: writes `dx`, `(rows, cols)`, from `dy`, `(rows, cols)`, and returns that of the bias, `(cols)`.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(kind: Gelu, x: &[T], bias: &[T], dy: &[T], dx: &mut [T]) -> Result<Vec<T>> {
    check(bias.len(), [x.len(), dy.len(), dx.len()])?;
    let slope = match kind {
        Gelu::Exact => slope_exact::<T>,
        Gelu::Tanh => slope_tanh::<T>,
    };
    let cols = bias.len().max(1);
    let rows = dx.chunks_exact_mut(cols).zip(dy.chunks_exact(cols)).zip(x.chunks_exact(cols));
    for ((dx, dy), x) in rows {
        for (((dx, dy), x), bias) in dx.iter_mut().zip(dy).zip(x).zip(bias) {
            *dx = *dy * slope(*x + *bias);
        }
    }
    Ok(column_sum::reference(dx, bias.len()))
}

fn check<const N: usize>(cols: usize, lens: [usize; N]) -> Result<()> {
    if lens.iter().any(|len| *len != lens[0]) || !lens[0].is_multiple_of(cols) {
        bail!("bias_gelu: matrices of {lens:?} elements do not fit a bias of {cols}");
    }
    Ok(())
}

/// The distribution function of the normal distribution.
fn normal_cdf<T: Element>(v: T) -> T {
    lit::<T>(0.5) + lit::<T>(0.5) * (v * lit(FRAC_1_SQRT_2)).error_function()
}

fn gelu_exact<T: Element>(v: T) -> T {
    v * normal_cdf(v)
}

fn slope_exact<T: Element>(v: T) -> T {
    let density = (v * v * lit(-0.5)).exp() * lit(0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2);
    normal_cdf(v) + v * density
}

/// GELU in its tanh form.
pub(crate) fn gelu_tanh<T: Element>(v: T) -> T {
    let inside = lit::<T>(FRAC_2_PI.sqrt()) * (v + lit::<T>(CUBIC) * v * v * v);
    lit::<T>(0.5) * v * (T::one() + inside.tanh())
}

/// With `s = (1 + tanh(u)) / 2` it is `s + 2 v s (1 - s) du/dv`. Both `s` and `s (1 - s)` are made of `exp(-2 |u|)`, which never
/// overflows, and of no difference.
fn slope_tanh<T: Element>(v: T) -> T {
    let square = num_traits::Float::min(v * v, lit(MAX_SQUARE));
    let twice_u = lit::<T>(2.0 * FRAC_2_PI.sqrt()) * v * (T::one() + lit::<T>(CUBIC) * square);
    let twice_du = lit::<T>(2.0 * FRAC_2_PI.sqrt()) * (T::one() + lit::<T>(3.0 * CUBIC) * square);
    let small = (-twice_u.abs()).exp();
    let large_share = (T::one() + small).recip();
    let share = if v < T::zero() { small * large_share } else { large_share };
    share + v * small * large_share * large_share * twice_du
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Gelu; 2] = [Gelu::Exact, Gelu::Tanh];

    /// `y` and `dx` without a bias, for a `dy` of ones.
    fn at<T: Element>(kind: Gelu, x: &[T]) -> [Vec<T>; 2] {
        let (zeros, ones) = (vec![T::zero(); x.len()], vec![T::one(); x.len()]);
        let [mut y, mut dx] = [zeros.clone(), zeros.clone()];
        forward(kind, x, &zeros, &mut y).unwrap();
        let dbias = backward(kind, x, &zeros, &ones, &mut dx).unwrap();
        assert!(dbias.iter().zip(&dx).all(|(sum, dx)| sum == dx || dx.is_nan()));
        [y, dx]
    }

    /// Far from 0 the function is 0 or the input, and its slope 0 or 1.
    fn assert_large_inputs_stay_finite<T: Element + std::fmt::Debug>(large: &[T]) {
        for kind in KINDS {
            for x in large {
                let [y, dx] = at(kind, &[*x, -*x, T::nan()]);
                assert_eq!((y[0], dx[0], y[1], dx[1]), (*x, T::one(), T::zero(), T::zero()), "{kind:?}");
                assert!(y[2].is_nan() && dx[2].is_nan(), "{kind:?}");
            }
        }
    }

    #[test]
    fn large_inputs() {
        assert_large_inputs_stay_finite(&[50f32, 1e10, 1e20, 3e38]);
        assert_large_inputs_stay_finite(&[50f64, 1e100, 1e200, 1e308]);
    }

    /// In f32 as in f64, where nothing of either form is small or large.
    #[test]
    fn slopes_in_f32() {
        for kind in KINDS {
            for step in -1200..=1200 {
                let x = f64::from(step) / 100.0;
                let ([_, wide], [_, found]) = (at(kind, &[x]), at(kind, &[x as f32]));
                let error = (f64::from(found[0]) - wide[0]).abs();
                assert!(error < 1e-6, "{kind:?}: at {x} the slope {} is not {}", found[0], wide[0]);
            }
        }
    }

    /// Of the tanh form far down the left, where `1 + tanh` would leave no digits: from the formula with 40 digits.
    #[test]
    fn slopes_that_are_small_keep_their_digits() {
        for (x, expected) in [
            (-6.0_f64, -7.709_973_930_953_696e-10_f64),
            (-8.0, -4.714_784_504_106_842e-20),
            (-10.0, -2.757_638_063_854_031_6e-36),
        ] {
            let [_, found] = at(Gelu::Tanh, &[x]);
            assert!((found[0] - expected).abs() < 1e-13 * expected.abs(), "{} is not {expected}", found[0]);
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let x = [1.0; 6];
        let refusal = |cols: usize, len: usize| {
            let (bias, mut to) = (vec![0.0; cols], vec![0.0; len]);
            let error = forward(Gelu::Tanh, &x, &bias, &mut to).unwrap_err().to_string();
            assert!(backward(Gelu::Tanh, &x, &bias, &x, &mut to).is_err());
            error
        };
        assert!(refusal(3, 5).contains("[6, 5] elements"));
        assert!(refusal(4, 6).contains("do not fit a bias of 4"));
        assert!(refusal(0, 6).contains("do not fit a bias of 0"));
        assert!(backward(Gelu::Exact, &x, &x[..3], &x[..3], &mut [0.0; 6]).is_err());
        assert!(backward::<f64>(Gelu::Exact, &[], &[], &[], &mut []).unwrap().is_empty());
        assert_eq!(backward::<f64>(Gelu::Exact, &[], &x[..3], &[], &mut []).unwrap(), [0.0; 3]);
    }
}
