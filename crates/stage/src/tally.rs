//! Counting what was kept and what was not, and why.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many rejected samples a report names one by one; the counts by reason are always complete.
pub(crate) const MAX_LISTED_REJECTS: usize = 1000;

/// A sample that was not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedSample {
    /// Key, URL or whatever names the sample best.
    pub key: String,
    /// Stable kebab-case reason.
    pub reason: String,
}

/// Samples seen, kept and rejected, with the reasons: `seen == kept + sum(rejected)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Samples looked at.
    pub seen: u64,
    /// Samples that went on.
    pub kept: u64,
    /// Rejections by reason.
    pub rejected: BTreeMap<String, u64>,
    /// The first rejected samples, 1000 at most, in the order they were met.
    pub rejects: Vec<RejectedSample>,
}

impl Tally {
    /// Counts a sample that goes on.
    pub fn keep(&mut self) {
        self.seen += 1;
        self.kept += 1;
    }

    /// Counts a sample that does not, under a stable kebab-case `reason`.
    pub fn reject(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        let reason = reason.into();
        self.seen += 1;
        *self.rejected.entry(reason.clone()).or_default() += 1;
        if self.rejects.len() < MAX_LISTED_REJECTS {
            self.rejects.push(RejectedSample { key: key.into(), reason });
        }
    }

    /// Adds the counts of another part of the data. Merge parts in data order: the list of rejects keeps it.
    pub fn merge(&mut self, other: Self) {
        self.seen += other.seen;
        self.kept += other.kept;
        for (reason, count) in other.rejected {
            *self.rejected.entry(reason).or_default() += count;
        }
        let room = MAX_LISTED_REJECTS.saturating_sub(self.rejects.len());
        self.rejects.extend(other.rejects.into_iter().take(room));
    }

    /// Number of rejected samples.
    #[must_use]
    pub fn num_rejected(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// # Panics
    /// If a sample was seen but neither kept nor rejected: a bug in the stage, never a matter of data.
    pub fn assert_balanced(&self) {
        assert_eq!(
            self.seen,
            self.kept + self.num_rejected(),
            "every sample seen must be kept or rejected: {self:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_counts_and_keeps_order() {
        let (mut left, mut right) = (Tally::default(), Tally::default());
        left.keep();
        left.reject("a", "odd");
        right.reject("b", "odd");
        right.reject("c", "even");
        left.merge(right);
        assert_eq!((left.seen, left.kept, left.num_rejected()), (4, 1, 3));
        assert_eq!(left.rejected["odd"], 2);
        assert_eq!(
            left.rejects.iter().map(|reject| reject.key.as_str()).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        left.assert_balanced();
    }

    #[test]
    fn the_list_of_rejects_is_bounded_and_the_counts_are_not() {
        let mut tally = Tally::default();
        for index in 0..MAX_LISTED_REJECTS + 5 {
            tally.reject(index.to_string(), "bad");
        }
        assert_eq!(tally.rejects.len(), MAX_LISTED_REJECTS);
        assert_eq!(tally.rejected["bad"], MAX_LISTED_REJECTS as u64 + 5);
    }

    #[test]
    #[should_panic(expected = "kept or rejected")]
    fn a_lost_sample_is_noticed() {
        let tally = Tally { seen: 2, kept: 1, ..Tally::default() };
        tally.assert_balanced();
    }
}
