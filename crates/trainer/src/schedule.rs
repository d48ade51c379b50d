//! Learning-rate schedule: linear warm-up, cosine decay to 0.

/// Factor on the peak learning rate, per optimizer step.
///
/// Source: Prismatic `linear-warmup+cosine-decay`; the first step has factor 0 unless there is no warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WarmupCosine {
    num_steps: u64,
    num_warmup_steps: u64,
}

impl WarmupCosine {
    /// `num_steps` in all, the first `warmup_ratio` of them warm-up (rounded down).
    #[must_use]
    pub fn new(num_steps: u64, warmup_ratio: f64) -> Self {
        Self { num_steps, num_warmup_steps: (warmup_ratio * num_steps as f64) as u64 }
    }

    /// Factor of step `step`, counted from 0.
    #[must_use]
    pub fn factor(&self, step: u64) -> f64 {
        let warmup = self.num_warmup_steps;
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let progress = (step - warmup) as f64 / self.num_steps.saturating_sub(warmup).max(1) as f64;
        (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_reference() {
        let schedule = WarmupCosine::new(10, 0.3);
        let expected = [0.0, 0.3333, 0.6667, 1.0, 0.9505, 0.8117, 0.6113, 0.3887, 0.1883, 0.0495, 0.0];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((schedule.factor(step as u64) - expected).abs() < 1e-4, "step {step}");
        }
    }

    #[test]
    fn without_warmup_the_first_step_counts() {
        assert_eq!(WarmupCosine::new(4, 0.0).factor(0), 1.0);
        assert_eq!(WarmupCosine::new(0, 0.0).factor(0), 1.0);
    }
}
