//! The formulas that measure a filter against the truth.

use serde::Serialize;

/// Area under the receiver operating characteristic: the probability that a random positive scores higher than a
/// random negative, a tie counting one half.
///
/// `None` if there is no positive or no negative. NaN is no score; leave it out.
///
/// Computed from the ranks (Mann-Whitney U), ties at their mean rank, in `n log n`.
///
/// # Panics
/// If a score is NaN.
///
/// ```
/// use oqvl_report::metrics::roc_auc;
/// assert_eq!(roc_auc(&[2.0, 3.0], &[0.0, 1.0]), Some(1.0));
/// assert_eq!(roc_auc(&[1.0], &[1.0]), Some(0.5));
/// assert_eq!(roc_auc(&[], &[1.0]), None);
/// ```
#[must_use]
pub fn roc_auc(positives: &[f64], negatives: &[f64]) -> Option<f64> {
    if positives.is_empty() || negatives.is_empty() {
        return None;
    }
    let labelled = positives.iter().map(|score| (*score, true));
    let mut scores: Vec<(f64, bool)> =
        labelled.chain(negatives.iter().map(|score| (*score, false))).collect();
    scores.sort_by(|left, right| left.0.partial_cmp(&right.0).expect("NaN is no score"));
    let mut rank_sum = 0.0;
    let mut start = 0;
    for tied in scores.chunk_by(|left, right| left.0 == right.0) {
        // Ranks start at 1: a group from `start` of length n has the mean rank start + (n + 1) / 2.
        let mean_rank = start as f64 + (tied.len() as f64 + 1.0) / 2.0;
        rank_sum += mean_rank * tied.iter().filter(|(_, is_positive)| *is_positive).count() as f64;
        start += tied.len();
    }
    let (num_positives, num_negatives) = (positives.len() as f64, negatives.len() as f64);
    let wins = rank_sum - num_positives * (num_positives + 1.0) / 2.0;
    Some(wins / (num_positives * num_negatives))
}

/// A selection against the truth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// Selected, and rightly so.
    pub true_positives: u64,
    /// Selected, and should not have been.
    pub false_positives: u64,
    /// Not selected, and should have been.
    pub false_negatives: u64,
    /// Not selected, and rightly so.
    pub true_negatives: u64,
}

impl Selection {
    /// Counts pairs of `(is selected, should be selected)`.
    #[must_use]
    pub fn of(samples: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut selection = Self::default();
        for sample in samples {
            let count = match sample {
                (true, true) => &mut selection.true_positives,
                (true, false) => &mut selection.false_positives,
                (false, true) => &mut selection.false_negatives,
                (false, false) => &mut selection.true_negatives,
            };
            *count += 1;
        }
        selection
    }

    /// Share of the selected that should have been; `None` if nothing was selected.
    #[must_use]
    pub fn precision(&self) -> Option<f64> {
        share(self.true_positives, self.false_positives)
    }

    /// Share of those to be selected that were; `None` if there was nothing to select.
    #[must_use]
    pub fn recall(&self) -> Option<f64> {
        share(self.true_positives, self.false_negatives)
    }
}

fn share(part: u64, rest: u64) -> Option<f64> {
    (part + rest > 0).then(|| part as f64 / (part + rest) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, pair by pair.
    fn by_pairs(positives: &[f64], negatives: &[f64]) -> f64 {
        let credit = |positive: f64, negative: f64| match positive.partial_cmp(&negative) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        };
        let sum: f64 = positives.iter().flat_map(|p| negatives.iter().map(move |n| credit(*p, *n))).sum();
        sum / (positives.len() * negatives.len()) as f64
    }

    #[test]
    fn auc_by_hand() {
        // Wins: 3 beats 1 and 2; 2 beats 1 and ties 2; 0 beats none: 3.5 of 6.
        assert_eq!(roc_auc(&[3.0, 2.0, 0.0], &[1.0, 2.0]), Some(3.5 / 6.0));
        assert_eq!(roc_auc(&[0.0], &[1.0]), Some(0.0));
        assert_eq!(roc_auc(&[1.0, 1.0, 1.0], &[1.0]), Some(0.5));
        assert_eq!(roc_auc(&[1.0], &[]), None);
    }

    #[test]
    fn selection_by_hand() {
        let selection =
            Selection::of([(true, true), (true, false), (false, true), (false, true), (false, false)]);
        assert_eq!(selection.precision(), Some(0.5));
        assert_eq!(selection.recall(), Some(1.0 / 3.0));
        assert_eq!(Selection::of([(false, false)]).precision(), None);
        assert_eq!(Selection::of([]).recall(), None);
    }

    proptest! {
        #[test]
        fn auc_equals_its_definition(
            positives in prop::collection::vec(0u8..6, 1..12),
            negatives in prop::collection::vec(0u8..6, 1..12),
        ) {
            let positives: Vec<f64> = positives.into_iter().map(f64::from).collect();
            let negatives: Vec<f64> = negatives.into_iter().map(f64::from).collect();
            let auc = roc_auc(&positives, &negatives).unwrap();
            prop_assert!((auc - by_pairs(&positives, &negatives)).abs() < 1e-12);
            // The other way round it is the complement.
            prop_assert!((auc + roc_auc(&negatives, &positives).unwrap() - 1.0).abs() < 1e-12);
        }
    }
}
