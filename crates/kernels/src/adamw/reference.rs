//! AdamW on the CPU in f32 or f64.

use super::{AdamW, CONTROL_LEN, DecayRanges};
use crate::element::{Element, lit};
use candle_core::{Result, bail};

/// The buffers of [`update`], each of the same length.
pub struct Buffers<'a, T> {
    /// Weights.
    pub w: &'a mut [T],
    /// Their gradients; 0 afterwards.
    pub grad: &'a mut [T],
    /// First moments.
    pub m: &'a mut [T],
    /// Second moments.
    pub v: &'a mut [T],
    /// A running mean of the weights, if there is one, and how much of it stays.
    pub ema: Option<(&'a mut [T], T)>,
}

/// What [`gradient_norm`] leaves for [`update`]: as [`Control`](super::launch::Control), in the element type.
pub type Control<T> = [T; CONTROL_LEN];

/// The norm of a gradient that is multiplied by `scale`, how it is clipped, whether the step is made, and its bias corrections.
/// `step` counts the steps that were made. The sum of squares is f64.
///
/// # Errors
/// If a setting is out of its range.
pub fn gradient_norm<T: Element>(
    settings: &AdamW,
    grad: &[T],
    scale: f64,
    step: &mut i32,
) -> Result<Control<T>> {
    settings.check()?;
    let square = |g: &T| g.to_f64().map_or(f64::NAN, |g| g * g);
    let norm = grad.iter().map(square).sum::<f64>().sqrt() * scale.abs();
    let is_finite = norm <= f64::from(f32::MAX);
    let clip = if is_finite { scale * (settings.max_norm / (norm + 1e-6)).min(1.0) } else { 0.0 };
    *step += i32::from(is_finite);
    let correction = |beta: f64| 1.0 - beta.powi(*step);
    let skip = f64::from(u8::from(!is_finite));
    Ok([norm, clip, skip, correction(settings.beta1), correction(settings.beta2)].map(to::<T>))
}

/// A norm may be beyond the element type.
fn to<T: Element>(value: f64) -> T {
    <T as num_traits::NumCast>::from(value).unwrap_or_else(T::nan)
}

/// One step, unless [`gradient_norm`] said to skip it; gradients become 0 in any case.
///
/// # Errors
/// If lengths differ or a setting is out of its range.
pub fn update<T: Element>(
    settings: &AdamW,
    lr: f64,
    buffers: Buffers<'_, T>,
    ranges: &DecayRanges,
    control: &Control<T>,
) -> Result<()> {
    settings.check()?;
    let Buffers { w, grad, m, v, mut ema } = buffers;
    let len = w.len();
    let lens = [grad.len(), m.len(), v.len(), ranges.len(), ema.as_ref().map_or(len, |(ema, _)| ema.len())];
    if lens.iter().any(|other| *other != len) {
        bail!("adamw: {len} weights, but gradients, moments, ranges and EMA have {lens:?}");
    }
    let &[_, clip, skip, correction1, correction2] = control;
    if skip == T::zero() {
        let (lr, one) = (lit::<T>(lr), T::one());
        let [beta1, beta2, eps] = [settings.beta1, settings.beta2, settings.eps].map(lit::<T>);
        let (rate, root) = (lr / correction1, correction2.sqrt().recip());
        for (range, decay) in ranges.boundaries().windows(2).zip(ranges.decays()) {
            let keep = one - lr * lit(f64::from(*decay));
            for at in range[0] as usize..range[1] as usize {
                let g = grad[at] * clip;
                m[at] = beta1 * m[at] + (one - beta1) * g;
                v[at] = beta2 * v[at] + (one - beta2) * g * g;
                w[at] = w[at] * keep - rate * m[at] / (v[at].sqrt() * root + eps);
                if let Some((ema, decay)) = &mut ema {
                    ema[at] = *decay * ema[at] + (one - *decay) * w[at];
                }
            }
        }
    }
    grad.fill(T::zero());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, max_norm: 1.0 };

    /// Three steps by hand, as `torch.optim.AdamW` with `clip_grad_norm_` before it makes them.
    #[test]
    fn steps_are_those_of_the_formulas() {
        let ranges = DecayRanges::new(&[(8, 0.1), (0, 9.0), (8, 0.0)]).unwrap();
        let mut w: Vec<f64> = (0..16).map(|i| f64::from(i) * 0.25 - 2.0).collect();
        let (mut m, mut v, mut step) = (vec![0.0; 16], vec![0.0; 16], 0);
        let (mut slow_w, mut slow_m, mut slow_v) = (w.clone(), vec![0.0; 16], vec![0.0; 16]);
        let mut ema = w.clone();
        for turn in 1..=3 {
            let gradient: Vec<f64> = (0..16).map(|i| f64::from(i * turn % 5) - 1.5).collect();
            let norm: f64 = gradient.iter().map(|g| (g * 0.5) * (g * 0.5)).sum::<f64>().sqrt();
            let mut grad = gradient.clone();
            let control = gradient_norm(&SETTINGS, &grad, 0.5, &mut step).unwrap();
            assert!((control[0] - norm).abs() < 1e-12 && step == turn);
            let buffers =
                Buffers { w: &mut w, grad: &mut grad, m: &mut m, v: &mut v, ema: Some((&mut ema, 0.5)) };
            update(&SETTINGS, 0.01, buffers, &ranges, &control).unwrap();
            assert_eq!(grad, [0.0; 16]);
            for i in 0..16 {
                let g = gradient[i] * 0.5 * (1.0 / (norm + 1e-6)).min(1.0);
                let decay = if i < 8 { f64::from(0.1f32) } else { 0.0 };
                slow_w[i] -= 0.01 * decay * slow_w[i];
                slow_m[i] += 0.1 * (g - slow_m[i]);
                slow_v[i] += 0.05 * (g * g - slow_v[i]);
                let (m, v) = (slow_m[i] / (1.0 - 0.9f64.powi(turn)), slow_v[i] / (1.0 - 0.95f64.powi(turn)));
                slow_w[i] -= 0.01 * m / (v.sqrt() + 1e-8);
                assert!((w[i] - slow_w[i]).abs() < 1e-12);
            }
        }
        assert!((ema[3] - w[3]).abs() > 1e-6 && (ema[3] - w[3]).abs() < 0.1);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_skipped_and_not_counted() {
        let ranges = DecayRanges::new(&[(8, 0.1)]).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let (mut w, mut grad, mut m, mut v, mut step) = ([1f32; 8], [0.5; 8], [0.1; 8], [0.1; 8], 4);
            grad[3] = bad;
            let control = gradient_norm(&SETTINGS, &grad, 1.0, &mut step).unwrap();
            assert_eq!((control[2], step), (1.0, 4));
            let buffers = Buffers { w: &mut w, grad: &mut grad, m: &mut m, v: &mut v, ema: None };
            update(&SETTINGS, 0.01, buffers, &ranges, &control).unwrap();
            assert_eq!((w, grad, m, v), ([1.0; 8], [0.0; 8], [0.1; 8], [0.1; 8]));
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for settings in [
            AdamW { beta1: 1.0, ..SETTINGS },
            AdamW { beta2: f64::NAN, ..SETTINGS },
            AdamW { eps: -1.0, ..SETTINGS },
            AdamW { max_norm: 0.0, ..SETTINGS },
            AdamW { max_norm: f64::NAN, ..SETTINGS },
        ] {
            assert!(gradient_norm(&settings, &[1f32], 1.0, &mut 0).is_err());
        }
        assert!(AdamW { max_norm: f64::INFINITY, ..SETTINGS }.check().is_ok());
        for ranges in [&[(7, 0.0)][..], &[(8, -1.0)], &[(8, f32::NAN)], &[(usize::MAX - 7, 0.0)]] {
            assert!(DecayRanges::new(ranges).is_err());
        }
        assert!(DecayRanges::new(&[]).unwrap().is_empty());
    }
}
