//! Subsets: which samples of the pool pass one rule.

use oqvl_shard_io::{ShardError, UidSubset};
use oqvl_stage::RunContext;
use serde::{Deserialize, Serialize};

use crate::config::{Cut, Rule};
use crate::pool::{SampleRecord, ShardScan};

/// A subset of the pool, decided.
#[derive(Debug)]
pub(crate) struct Subset {
    /// Per shard and sample: whether it is in.
    pub(crate) members: Vec<Vec<bool>>,
    /// The counts for the report.
    pub(crate) report: SubsetReport,
}

/// What the report says of a subset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubsetReport {
    /// Its name.
    pub name: String,
    /// The lowest score that is in; none for a subset given by uids, or when no sample has a score.
    pub threshold: Option<f64>,
    /// Samples of the pool that have a score; 0 for a subset given by uids.
    pub scored: u64,
    /// Samples of the pool that lack one; 0 for a subset given by uids.
    pub missing_score: u64,
    /// Samples in the subset, before duplicates are dropped.
    pub samples: u64,
}

impl Subset {
    /// Applies `rule`, the one at `index` of the list, to every sample with a usable uid.
    pub(crate) fn decide(
        name: &str,
        index: usize,
        rule: &Rule,
        pool: &[ShardScan],
        run: &RunContext,
    ) -> Result<Subset, ShardError> {
        let mut report =
            SubsetReport { name: name.to_owned(), threshold: None, scored: 0, missing_score: 0, samples: 0 };
        let members: Vec<Vec<bool>> = match rule {
            Rule::Uids(path) => {
                let uids = UidSubset::read(&run.resolve(path))?;
                let is_member = |scan: &ShardScan| {
                    scan.samples
                        .iter()
                        .map(|sample| sample.uid.is_ok_and(|uid| uids.contains(&uid)))
                        .collect()
                };
                pool.iter().map(is_member).collect()
            }
            Rule::Score { cut, .. } => {
                let mut scores: Vec<f64> =
                    pool.iter().flat_map(|scan| usable_scores(scan, index)).filter(|s| !s.is_nan()).collect();
                let num_usable: usize = pool.iter().map(|scan| usable_scores(scan, index).count()).sum();
                report.scored = scores.len() as u64;
                report.missing_score = (num_usable - scores.len()) as u64;
                report.threshold = match *cut {
                    Cut::MinScore(min_score) => Some(min_score),
                    Cut::Fraction(fraction) => fraction_threshold(&mut scores, fraction),
                };
                // A comparison with NaN is false: a sample without a score is never in.
                let threshold = report.threshold.unwrap_or(f64::INFINITY);
                let is_member = |scan: &ShardScan| {
                    let passes =
                        |(sample, score): (&SampleRecord, &f64)| sample.uid.is_ok() && *score >= threshold;
                    scan.samples.iter().zip(&scan.scores[index]).map(passes).collect()
                };
                pool.iter().map(is_member).collect()
            }
        };
        report.samples = members.iter().flatten().filter(|is_member| **is_member).count() as u64;
        Ok(Subset { members, report })
    }

    /// The uids of its samples.
    pub(crate) fn uids(&self, pool: &[ShardScan]) -> UidSubset {
        let samples = pool.iter().flat_map(|scan| &scan.samples);
        let members = samples.zip(self.members.iter().flatten()).filter(|(_, is_member)| **is_member);
        members.filter_map(|(sample, _)| sample.uid.ok()).collect()
    }

    /// Samples that are in both subsets.
    pub(crate) fn overlap(&self, other: &Subset) -> u64 {
        let pairs = self.members.iter().flatten().zip(other.members.iter().flatten());
        pairs.filter(|(here, there)| **here && **there).count() as u64
    }
}

/// The scores of the samples that could be selected; NaN where there is none.
fn usable_scores(scan: &ShardScan, index: usize) -> impl Iterator<Item = f64> + '_ {
    let scored = scan.samples.iter().zip(&scan.scores[index]);
    scored.filter(|(sample, _)| sample.uid.is_ok()).map(|(_, score)| *score)
}

/// The DataComp rule: with the scores in descending order, the one at index `int(N * fraction)`. Keeping what is
/// not below it keeps ties and one sample more than the fraction. A fraction of 1, out of range there, keeps all.
///
/// Source: `baselines.py` of DataComp, `clip_score` with `--fraction`.
fn fraction_threshold(scores: &mut [f64], fraction: f64) -> Option<f64> {
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let index = (scores.len() as f64 * fraction) as usize;
    scores.get(index).or(scores.last()).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(scores: &[f64], fraction: f64, expected: Option<f64>) {
        assert_eq!(fraction_threshold(&mut scores.to_vec(), fraction), expected, "{scores:?} {fraction}");
    }

    #[test]
    fn threshold_is_the_score_at_the_rounded_down_index() {
        check(&[], 0.5, None);
        check(&[3.0], 0.01, Some(3.0));
        check(&[3.0], 1.0, Some(3.0));
        check(&[1.0, 4.0, 2.0, 3.0], 0.5, Some(2.0)); // index 2: keeps three of four
        check(&[1.0, 4.0, 2.0, 3.0], 0.49, Some(3.0)); // index 1
        check(&[1.0, 4.0, 2.0, 3.0], 1.0, Some(1.0));
        check(&[2.0, 2.0, 2.0, 9.0, 1.0], 0.3, Some(2.0)); // ties: keeps four of five
        check(&[0.0, -1.0, 1.0], 0.7, Some(-1.0));
    }

    proptest! {
        /// The rule keeps at least the fraction, and without ties at most one sample more.
        #[test]
        fn at_least_the_fraction_is_kept(
            scores in prop::collection::hash_set(-1000..1000_i32, 1..60),
            fraction in 0.001..=1.0_f64,
        ) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let threshold = fraction_threshold(&mut scores.clone(), fraction).unwrap();
            let num_kept = scores.iter().filter(|score| **score >= threshold).count();
            let exact = scores.len() as f64 * fraction;
            prop_assert!(num_kept as f64 >= exact.floor());
            prop_assert!(num_kept as f64 <= exact + 1.0);
        }
    }
}
