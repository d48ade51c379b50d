//! Training curves, short enough for a page.

use crate::error::ReportError;
use crate::lines;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// File in which a training stage leaves a line per step.
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";
/// Points of a curve on the page.
const MAX_POINTS: usize = 40;
/// Characters of rising height.
pub(crate) const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A line of `metrics.jsonl`; other fields are left alone.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StepMetrics {
    /// Optimizer step.
    pub step: u64,
    /// Mean loss over the step's label tokens, in nats.
    pub loss: f64,
}

/// The losses of one training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossCurve {
    /// Optimizer steps.
    pub num_steps: u64,
    /// Mean loss over the first tenth of the steps, at least one.
    pub first_loss: f64,
    /// Mean loss over the last tenth of the steps, at least one.
    pub last_loss: f64,
    /// At most 40 points `[last step of the bin, mean loss in the bin]`.
    pub points: Vec<(u64, f64)>,
}

impl LossCurve {
    /// Reads `metrics.jsonl`; `None` if there is not one step.
    ///
    /// # Errors
    /// If the file cannot be read or a line lacks `step` or `loss`.
    pub fn read(path: &Path) -> Result<Option<Self>, ReportError> {
        Ok(Self::of(&lines::read::<StepMetrics>(path)?))
    }

    /// Summarises the steps; `None` if there is not one.
    #[must_use]
    pub fn of(steps: &[StepMetrics]) -> Option<Self> {
        let tenth = steps.len().div_ceil(10);
        let bin = steps.len().div_ceil(MAX_POINTS).max(1);
        let points = steps.chunks(bin).filter_map(|bin| Some((bin.last()?.step, mean(bin)?))).collect();
        Some(Self {
            num_steps: steps.len() as u64,
            first_loss: mean(&steps[..tenth])?,
            last_loss: mean(&steps[steps.len() - tenth..])?,
            points,
        })
    }

    /// The curve as one line of characters, lowest loss at the bottom.
    ///
    /// ```
    /// use oqvl_report::curves::{LossCurve, StepMetrics};
    /// let steps: Vec<_> = (0..8).map(|step| StepMetrics { step, loss: 7.0 - step as f64 }).collect();
    /// assert_eq!(LossCurve::of(&steps).unwrap().sparkline(), "█▇▆▅▄▃▂▁");
    /// ```
    #[must_use]
    pub fn sparkline(&self) -> String {
        let losses = || self.points.iter().map(|(_, loss)| *loss).filter(|loss| loss.is_finite());
        let (low, high) = losses().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), x| (l.min(x), h.max(x)));
        let height = |loss: f64| {
            let share = if high > low { (loss - low) / (high - low) } else { 0.0 };
            BARS[((share * BARS.len() as f64) as usize).min(BARS.len() - 1)]
        };
        self.points.iter().map(|(_, loss)| if loss.is_finite() { height(*loss) } else { '?' }).collect()
    }
}

fn mean(steps: &[StepMetrics]) -> Option<f64> {
    (!steps.is_empty()).then(|| steps.iter().map(|step| step.loss).sum::<f64>() / steps.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(losses: &[f64]) -> Vec<StepMetrics> {
        losses
            .iter()
            .enumerate()
            .map(|(step, loss)| StepMetrics { step: step as u64 + 1, loss: *loss })
            .collect()
    }

    #[test]
    fn a_curve_of_few_steps_is_itself() {
        assert_eq!(LossCurve::of(&[]), None);
        let curve = LossCurve::of(&steps(&[3.0])).unwrap();
        assert_eq!((curve.num_steps, curve.first_loss, curve.last_loss), (1, 3.0, 3.0));
        assert_eq!((curve.points.as_slice(), curve.sparkline().as_str()), (&[(1, 3.0)][..], "▁"));
    }

    #[test]
    fn a_long_curve_is_binned_and_loses_no_step() {
        let losses: Vec<f64> = (0..1001).map(f64::from).collect();
        let curve = LossCurve::of(&steps(&losses)).unwrap();
        assert!(curve.points.len() <= MAX_POINTS);
        assert_eq!(curve.points.last().unwrap().0, 1001);
        // The first tenth is 101 steps with losses 0 to 100.
        assert_eq!((curve.first_loss, curve.last_loss), (50.0, 950.0));
    }

    #[test]
    fn a_loss_that_is_no_number_is_visible() {
        let curve = LossCurve::of(&steps(&[1.0, f64::INFINITY, 0.0])).unwrap();
        assert_eq!(curve.sparkline(), "█?▁");
    }
}
