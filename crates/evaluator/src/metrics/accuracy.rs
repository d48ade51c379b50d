//! Accuracy and its interval.

use serde::{Deserialize, Serialize};

/// Two-sided 95 % quantile of the normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;

/// 95 % Wilson score interval `[low, high]` of a proportion, as fractions in `0..=1`.
///
/// `successes` may be fractional: the credits of a soft metric lie in `0..=1`, and the variance of such a credit is at
/// most that of a coin with the same mean, so the interval is then wider than needed, never narrower. With `num == 0`
/// nothing is known and the interval is `[0, 1]`.
///
/// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
///
/// ```
/// let [low, high] = oqvl_evaluator::metrics::wilson_interval(5.0, 10);
/// assert!((low - 0.2366).abs() < 1e-4 && (high - 0.7634).abs() < 1e-4);
/// ```
pub fn wilson_interval(successes: f64, num: u64) -> [f64; 2] {
    if num == 0 {
        return [0.0, 1.0];
    }
    let n = num as f64;
    let mean = (successes / n).clamp(0.0, 1.0);
    let z2_over_n = Z_95 * Z_95 / n;
    let center = (mean + z2_over_n / 2.0) / (1.0 + z2_over_n);
    let half = Z_95 * (mean * (1.0 - mean) / n + z2_over_n / (4.0 * n)).sqrt() / (1.0 + z2_over_n);
    // At a mean of 0 or 1 the exact bound is 0 or 1; rounding must not move it off.
    let low = if mean == 0.0 { 0.0 } else { (center - half).max(0.0) };
    let high = if mean == 1.0 { 1.0 } else { (center + half).min(1.0) };
    [low, high]
}

/// Mean credit over a number of questions, with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proportion {
    /// Mean credit, a fraction in `0..=1`; 0 when there is no question.
    pub accuracy: f64,
    /// Number of questions the mean is over.
    pub num: u64,
    /// 95 % Wilson interval of `accuracy`, see [`wilson_interval`].
    pub ci95: [f64; 2],
}

impl Proportion {
    /// Averages `credits`, each in `0..=1`.
    pub fn of(credits: impl IntoIterator<Item = f64>) -> Self {
        let (sum, num) = credits.into_iter().fold((0.0, 0_u64), |(sum, num), credit| (sum + credit, num + 1));
        let accuracy = if num == 0 { 0.0 } else { sum / num as f64 };
        Self { accuracy, num, ci95: wilson_interval(sum, num) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(successes: f64, num: u64, expected: [f64; 2]) {
        let [low, high] = wilson_interval(successes, num);
        assert!((low - expected[0]).abs() < 5e-5, "{successes}/{num}: low {low}");
        assert!((high - expected[1]).abs() < 5e-5, "{successes}/{num}: high {high}");
    }

    /// Expected values computed with the closed form in 40-digit decimal arithmetic.
    #[test]
    fn interval_of_known_proportions() {
        check(0.0, 0, [0.0, 1.0]);
        check(0.0, 1, [0.0, 0.79345]);
        check(1.0, 1, [0.20655, 1.0]);
        check(0.0, 10, [0.0, 0.27753]);
        check(5.0, 10, [0.23659, 0.76341]);
        check(10.0, 10, [0.72247, 1.0]);
        check(81.0, 263, [0.25527, 0.36618]);
    }

    #[test]
    fn interval_holds_the_mean_and_shrinks() {
        for num in [1_u64, 2, 7, 100, 5001] {
            for tenths in 0..=10 {
                let successes = num as f64 * f64::from(tenths) / 10.0;
                let [low, high] = wilson_interval(successes, num);
                let mean = successes / num as f64;
                assert!(0.0 <= low && low <= mean + 1e-12 && mean <= high + 1e-12 && high <= 1.0);
                let [low_more, high_more] = wilson_interval(successes * 4.0, num * 4);
                assert!(high_more - low_more < high - low);
            }
        }
    }

    #[test]
    fn proportion_of_none_is_zero() {
        let none = Proportion::of([]);
        assert_eq!((none.accuracy, none.num, none.ci95), (0.0, 0, [0.0, 1.0]));
        let some = Proportion::of([1.0, 0.0, 0.5]);
        assert_eq!((some.accuracy, some.num), (0.5, 3));
    }
}
