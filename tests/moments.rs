//! Moments to kill a run at: random, and the same in every test run.

use std::time::Duration;

/// A stream of seeded random moments.
#[derive(Debug, Clone)]
pub struct Moments {
    state: u64,
}

impl Moments {
    /// The stream of a seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A duration between `shortest` and `longest`, evenly distributed.
    pub fn between(&mut self, shortest: Duration, longest: Duration) -> Duration {
        // SplitMix64 (Steele, Lea, Flood 2014): enough for a handful of moments.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64;
        shortest + longest.saturating_sub(shortest).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_in_range_different_and_repeatable() {
        let range = (Duration::from_secs(1), Duration::from_secs(3));
        let draw = |seed| {
            let mut moments = Moments::seeded(seed);
            (0..50).map(|_| moments.between(range.0, range.1)).collect::<Vec<_>>()
        };
        let drawn = draw(7);
        assert!(drawn.iter().all(|moment| (range.0..=range.1).contains(moment)));
        assert!(drawn.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(drawn, draw(7));
        assert_ne!(drawn, draw(8));
    }
}
