//! AdamW over flat buffers, with clipping by the global norm, for engines with memory of their own.

pub mod launch;
pub mod reference;
mod sys;

use candle_core::{Result, bail};

/// Elements that boundaries of ranges, and the length of buffers, are multiples of.
pub const UNIT: usize = 8;
/// Numbers that the norm leaves for the update.
pub const CONTROL_LEN: usize = 5;
/// Where the norm of the gradient is among them.
pub const NORM: usize = 0;
/// Where 1 says that the step was skipped.
pub const SKIP: usize = 2;

/// What stays the same from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Norm that gradients are clipped to; infinite for none.
    pub max_norm: f64,
}

impl AdamW {
    fn check(&self) -> Result<()> {
        let Self { beta1, beta2, eps, max_norm } = *self;
        let is_decay = |beta: f64| (0.0..1.0).contains(&beta);
        if !(is_decay(beta1) && is_decay(beta2) && eps.is_finite() && eps >= 0.0) {
            bail!("adamw: betas lie in [0, 1) and eps is not negative, got {self:?}");
        }
        // Not a number is not more than 0 either.
        if max_norm.is_nan() || max_norm <= 0.0 {
            bail!("adamw: gradients cannot be clipped to a norm of {max_norm}");
        }
        Ok(())
    }
}

/// The weight decay of each range of a flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct DecayRanges {
    boundaries: Vec<i64>,
    decays: Vec<f32>,
}

impl DecayRanges {
    /// Ranges one after another, each with its length and its decay.
    ///
    /// # Errors
    /// If a length is no multiple of 8, a decay is not a number or negative, or all together are more than can be counted.
    pub fn new(ranges: &[(usize, f32)]) -> Result<Self> {
        let (mut boundaries, mut decays) = (vec![0], Vec::new());
        let mut end = 0i64;
        for (len, decay) in ranges {
            let next = i64::try_from(*len).ok().and_then(|len| end.checked_add(len));
            let Some(next) = next.filter(|_| len.is_multiple_of(UNIT) && decay.is_finite() && *decay >= 0.0)
            else {
                bail!(
                    "adamw: a range of {len} weights with a decay of {decay}; lengths are multiples of {UNIT}"
                )
            };
            // Empty ranges would be found instead of the one that begins where they do.
            if *len > 0 {
                end = next;
                boundaries.push(end);
                decays.push(*decay);
            }
        }
        if i32::try_from(decays.len()).is_err() {
            bail!("adamw: {} ranges are too many", decays.len());
        }
        Ok(Self { boundaries, decays })
    }

    /// Weights of all ranges.
    pub fn len(&self) -> usize {
        self.boundaries[self.boundaries.len() - 1] as usize
    }

    /// Whether there are no weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of ranges that are not empty.
    pub fn num_ranges(&self) -> usize {
        self.decays.len()
    }

    /// Where ranges begin, and where the last ends.
    pub fn boundaries(&self) -> &[i64] {
        &self.boundaries
    }

    /// The decay of each.
    pub fn decays(&self) -> &[f32] {
        &self.decays
    }
}
