//! What is counted while packing: per unit, in its done-marker, and for the run.

use oqvl_stage::Tally;
use serde::{Deserialize, Serialize};

/// Bins of the length histogram up to `seq_len`.
const NUM_HISTOGRAM_BINS: u32 = 64;

/// How long documents are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthHistogram {
    /// Width of a bin, in tokens: bin `i` counts lengths from `i * bin_tokens` on.
    pub bin_tokens: u32,
    /// Documents per bin; the last bin also holds whatever is longer.
    pub counts: Vec<u64>,
}

impl LengthHistogram {
    /// An empty histogram of about 64 bins for lengths up to `seq_len`.
    pub fn new(seq_len: u32) -> Self {
        let bin_tokens = seq_len.div_ceil(NUM_HISTOGRAM_BINS);
        let num_bins = seq_len / bin_tokens + 2; // one for `seq_len` itself, one for what is longer
        Self { bin_tokens, counts: vec![0; num_bins as usize] }
    }

    /// Counts a document of `length` tokens.
    pub fn add(&mut self, length: u32) {
        let last = self.counts.len() - 1;
        self.counts[last.min((length / self.bin_tokens) as usize)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        assert_eq!(self.bin_tokens, other.bin_tokens, "histograms of one run have the same bins");
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }
}

/// `{:08}_stats.json`: the done-marker of one packing unit, from which the report is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnitStats {
    /// Tokens of each pack, images expanded. The reference's file has this field alone.
    pub(crate) len: Vec<u64>,
    /// Samples, kept and rejected.
    pub(crate) tally: Tally,
    /// Samples whose key an earlier sample of the tar has too; they are kept.
    pub(crate) num_duplicate_keys: u64,
    /// Lengths of the documents.
    pub(crate) length_histogram: LengthHistogram,
}

/// What the packer reports, for the units of this process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackerReport {
    /// Samples, kept and rejected.
    #[serde(flatten)]
    pub tally: Tally,
    /// Input tars.
    pub num_shards: u64,
    /// Packs written.
    pub num_packs: u64,
    /// Packs that hold one document longer than `seq_len`; training cuts it.
    pub num_overlong_packs: u64,
    /// Samples whose key an earlier sample of their tar has too; they are kept.
    pub num_duplicate_keys: u64,
    /// Tokens of all packs, images expanded, without what is beyond `seq_len`.
    pub num_tokens: u64,
    /// `num_tokens / (num_packs * seq_len)`: the share of every sequence that is not padding. 0 without packs.
    pub efficiency: f64,
    /// Documents per pack. 0 without packs.
    pub mean_pairs_per_pack: f64,
    /// Lengths of the documents.
    pub length_histogram: LengthHistogram,
}

impl PackerReport {
    /// The report over units, given in input order.
    pub(crate) fn new(units: Vec<UnitStats>, seq_len: u32) -> Self {
        let mut report = Self {
            tally: Tally::default(),
            num_shards: units.len() as u64,
            num_packs: 0,
            num_overlong_packs: 0,
            num_duplicate_keys: 0,
            num_tokens: 0,
            efficiency: 0.0,
            mean_pairs_per_pack: 0.0,
            length_histogram: LengthHistogram::new(seq_len),
        };
        let seq_len = u64::from(seq_len);
        for unit in units {
            report.num_packs += unit.len.len() as u64;
            report.num_overlong_packs += unit.len.iter().filter(|&&tokens| tokens > seq_len).count() as u64;
            report.num_tokens += unit.len.iter().map(|&tokens| tokens.min(seq_len)).sum::<u64>();
            report.num_duplicate_keys += unit.num_duplicate_keys;
            report.length_histogram.merge(&unit.length_histogram);
            report.tally.merge(unit.tally);
        }
        report.tally.assert_balanced();
        if report.num_packs > 0 {
            report.efficiency = report.num_tokens as f64 / (report.num_packs * seq_len) as f64;
            report.mean_pairs_per_pack = report.tally.kept as f64 / report.num_packs as f64;
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_bins() {
        for seq_len in [1, 2, 63, 64, 65, 384, 4096] {
            let mut histogram = LengthHistogram::new(seq_len);
            for length in [0, seq_len, seq_len.saturating_add(1), u32::MAX] {
                histogram.add(length);
            }
            assert_eq!(histogram.counts.iter().sum::<u64>(), 4);
            assert_eq!(histogram.counts[0], 1);
            assert!(*histogram.counts.last().unwrap() >= 1);
            assert!(histogram.counts.len() <= 66, "{seq_len}");
        }
        assert_eq!(LengthHistogram::new(4096).bin_tokens, 64);
    }

    #[test]
    fn efficiency_does_not_count_what_training_cuts() {
        let mut tally = Tally::default();
        (0..3).for_each(|_| tally.keep());
        let mut length_histogram = LengthHistogram::new(100);
        [60, 30, 250].into_iter().for_each(|length| length_histogram.add(length));
        let unit = UnitStats { len: vec![250, 90], tally, num_duplicate_keys: 0, length_histogram };
        let report = PackerReport::new(vec![unit], 100);
        assert_eq!((report.num_packs, report.num_overlong_packs, report.num_tokens), (2, 1, 190));
        assert_eq!((report.efficiency, report.mean_pairs_per_pack), (0.95, 1.5));
    }

    #[test]
    fn nothing_gives_zeros() {
        let report = PackerReport::new(vec![], 100);
        assert_eq!((report.num_packs, report.efficiency, report.mean_pairs_per_pack), (0, 0.0, 0.0));
    }
}
