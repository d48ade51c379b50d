//! What is counted while packing: per unit, in its done-marker, and for the run.

use std::collections::BTreeMap;

use oqvl_stage::Tally;
use serde::{Deserialize, Serialize};

use crate::document::Document;

/// Bins of a histogram up to `seq_len`.
const NUM_HISTOGRAM_BINS: u32 = 64;

/// How many tokens documents, or packs, have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthHistogram {
    /// Width of a bin, in tokens: bin `i` counts lengths from `i * bin_tokens` on.
    pub bin_tokens: u32,
    /// Documents or packs per bin; the last bin also holds whatever is longer.
    pub counts: Vec<u64>,
}

impl LengthHistogram {
    /// An empty histogram of about 64 bins for lengths up to `seq_len`, which counts as 1 if it is 0.
    pub fn new(seq_len: u32) -> Self {
        let bin_tokens = seq_len.div_ceil(NUM_HISTOGRAM_BINS).max(1);
        let num_bins = seq_len / bin_tokens + 2; // one for `seq_len` itself, one for what is longer
        Self { bin_tokens, counts: vec![0; num_bins as usize] }
    }

    /// Counts a length of `tokens`.
    pub fn add(&mut self, tokens: u32) {
        let last = self.counts.len() - 1;
        self.counts[last.min((tokens / self.bin_tokens) as usize)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        assert_eq!(self.bin_tokens, other.bin_tokens, "histograms of one run have the same bins");
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }
}

/// What the packs of a unit hold, or of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackContents {
    /// Images.
    pub num_images: u64,
    /// Tokens of images, expanded.
    pub image_tokens: u64,
    /// Tokens of text.
    pub text_tokens: u64,
    /// Tokens that begin, end and separate: `<s>`, `<|im_end|>`, `<|endofchunk|>` and their kind, also where a text
    /// brings them.
    pub special_tokens: u64,
    /// Packs by number of images: entry `i` counts those with `i`.
    pub packs_by_images: Vec<u64>,
    /// Documents by number of images.
    pub documents_by_images: Vec<u64>,
    /// Tokens of packs; more than `seq_len` in the last bin.
    pub fill_histogram: LengthHistogram,
    /// Tokens of documents.
    pub length_histogram: LengthHistogram,
}

impl PackContents {
    /// Nothing counted yet.
    pub(crate) fn new(seq_len: u32) -> Self {
        Self {
            num_images: 0,
            image_tokens: 0,
            text_tokens: 0,
            special_tokens: 0,
            packs_by_images: Vec::new(),
            documents_by_images: Vec::new(),
            fill_histogram: LengthHistogram::new(seq_len),
            length_histogram: LengthHistogram::new(seq_len),
        }
    }

    /// Counts the pack of these documents and returns its tokens.
    pub(crate) fn add(&mut self, documents: &[Document], is_special: impl Fn(i32) -> bool) -> u64 {
        let (mut tokens, mut num_images) = (0, 0);
        for document in documents {
            let num_ids = document.input_ids.len() as u64;
            let images = document.images.len() as u64;
            num_images += document.images.len();
            tokens += u64::from(document.length);
            add_to(&mut self.documents_by_images, document.images.len(), 1);
            self.length_histogram.add(document.length);
            self.image_tokens += u64::from(document.length) + images - num_ids;
            let num_special = document.input_ids.iter().filter(|&&id| is_special(id)).count() as u64;
            self.special_tokens += num_special;
            self.text_tokens += num_ids - images - num_special;
        }
        self.num_images += num_images as u64;
        add_to(&mut self.packs_by_images, num_images, 1);
        self.fill_histogram.add(u32::try_from(tokens).unwrap_or(u32::MAX));
        tokens
    }

    fn merge(&mut self, other: Self) {
        self.num_images += other.num_images;
        self.image_tokens += other.image_tokens;
        self.text_tokens += other.text_tokens;
        self.special_tokens += other.special_tokens;
        for (images, count) in other.packs_by_images.into_iter().enumerate() {
            add_to(&mut self.packs_by_images, images, count);
        }
        for (images, count) in other.documents_by_images.into_iter().enumerate() {
            add_to(&mut self.documents_by_images, images, count);
        }
        self.fill_histogram.merge(&other.fill_histogram);
        self.length_histogram.merge(&other.length_histogram);
    }
}

/// Adds to entry `index`, which may not be there yet.
fn add_to(counts: &mut Vec<u64>, index: usize, count: u64) {
    if counts.len() <= index {
        counts.resize(index + 1, 0);
    }
    counts[index] += count;
}

/// `{:08}_stats.json`: the done-marker of one packing unit, from which the report is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnitStats {
    /// Tokens of each pack, images expanded. The reference's file has this field alone.
    pub(crate) len: Vec<u64>,
    /// Samples, kept and rejected.
    pub(crate) tally: Tally,
    /// Input shards.
    pub(crate) num_shards: u64,
    /// Packs there would be if no shard shared one with another.
    pub(crate) num_packs_by_shard: u64,
    /// Samples whose key an earlier sample of the tar has too.
    pub(crate) num_duplicate_keys: u64,
    /// Images left out of documents that stayed, by reason.
    pub(crate) skipped_images: BTreeMap<String, u64>,
    /// What the packs hold.
    pub(crate) contents: PackContents,
}

/// What the packer reports, for the units of this process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackerReport {
    /// Samples, kept and rejected.
    #[serde(flatten)]
    pub tally: Tally,
    /// Input shards: tars, or directories of packed JSON.
    pub num_shards: u64,
    /// Packs written.
    pub num_packs: u64,
    /// Packs there would be if no shard shared one with another; more than `num_packs` where packing across shards saves
    /// some.
    pub num_packs_by_shard: u64,
    /// Packs that hold one document longer than `seq_len`; training cuts it.
    pub num_overlong_packs: u64,
    /// `num_overlong_packs` per document. 0 without documents.
    pub overlong_share: f64,
    /// Samples whose key an earlier sample of their tar has too.
    pub num_duplicate_keys: u64,
    /// Images left out of documents that stayed, by reason.
    pub skipped_images: BTreeMap<String, u64>,
    /// Tokens of all packs, images expanded, without what is beyond `seq_len`.
    pub num_tokens: u64,
    /// Positions of all packs that no token fills: `num_packs * seq_len - num_tokens`.
    pub padding_tokens: u64,
    /// `num_tokens / (num_packs * seq_len)`: the share of every sequence that is not padding. 0 without packs.
    pub efficiency: f64,
    /// The same if no shard shared a pack with another. 0 without packs.
    pub efficiency_by_shard: f64,
    /// Documents per pack. 0 without packs.
    pub mean_pairs_per_pack: f64,
    /// Images per pack. 0 without packs.
    pub mean_images_per_pack: f64,
    /// What the packs hold, with what is beyond `seq_len`.
    #[serde(flatten)]
    pub contents: PackContents,
}

impl PackerReport {
    /// The report over units, given in input order.
    pub(crate) fn new(units: Vec<UnitStats>, seq_len: u32) -> Self {
        let mut report = Self {
            tally: Tally::default(),
            num_shards: 0,
            num_packs: 0,
            num_packs_by_shard: 0,
            num_overlong_packs: 0,
            overlong_share: 0.0,
            num_duplicate_keys: 0,
            skipped_images: BTreeMap::new(),
            num_tokens: 0,
            padding_tokens: 0,
            efficiency: 0.0,
            efficiency_by_shard: 0.0,
            mean_pairs_per_pack: 0.0,
            mean_images_per_pack: 0.0,
            contents: PackContents::new(seq_len),
        };
        let seq_len = u64::from(seq_len);
        for unit in units {
            report.num_shards += unit.num_shards;
            report.num_packs += unit.len.len() as u64;
            report.num_packs_by_shard += unit.num_packs_by_shard;
            report.num_overlong_packs += unit.len.iter().filter(|&&tokens| tokens > seq_len).count() as u64;
            report.num_tokens += unit.len.iter().map(|&tokens| tokens.min(seq_len)).sum::<u64>();
            report.num_duplicate_keys += unit.num_duplicate_keys;
            for (reason, count) in unit.skipped_images {
                *report.skipped_images.entry(reason).or_default() += count;
            }
            report.contents.merge(unit.contents);
            report.tally.merge(unit.tally);
        }
        report.tally.assert_balanced();
        report.padding_tokens = report.num_packs * seq_len - report.num_tokens;
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        report.efficiency = share(report.num_tokens, report.num_packs * seq_len);
        report.efficiency_by_shard = share(report.num_tokens, report.num_packs_by_shard * seq_len);
        report.overlong_share = share(report.num_overlong_packs, report.tally.kept);
        report.mean_pairs_per_pack = share(report.tally.kept, report.num_packs);
        report.mean_images_per_pack = share(report.contents.num_images, report.num_packs);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Place;

    fn document(ids: &[i32], num_images: usize, length: u32) -> Document {
        let images = vec![Place::default(); num_images];
        Document { input_ids: ids.to_vec(), images, length, ..Document::default() }
    }

    fn unit(packs: &[&[Document]], num_packs_by_shard: u64) -> UnitStats {
        let mut contents = PackContents::new(100);
        let mut tally = Tally::default();
        let len = packs.iter().map(|documents| contents.add(documents, |id| id == 1)).collect();
        packs.iter().flat_map(|documents| documents.iter()).for_each(|_| tally.keep());
        let skipped_images = BTreeMap::from([("one-pixel-image".to_owned(), 2)]);
        UnitStats {
            len,
            tally,
            num_shards: 2,
            num_packs_by_shard,
            num_duplicate_keys: 0,
            skipped_images,
            contents,
        }
    }

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
    fn tokens_are_told_apart_and_cut_tokens_are_not_efficient() {
        // 30 tokens an image; id 1 is special.
        let one = document(&[1, -200, 5, 6, 1], 1, 34);
        let two = document(&[1, -200, 7, -200, 1], 2, 63);
        let long = document(&[[1, -200].as_slice(), &[5; 218], &[1]].concat(), 1, 250);
        let stats = unit(&[&[long], &[two, one]], 3);
        let report = PackerReport::new(vec![stats.clone(), stats], 100);
        assert_eq!((report.num_shards, report.num_packs, report.num_packs_by_shard), (4, 4, 6));
        assert_eq!((report.num_overlong_packs, report.overlong_share), (2, 2.0 / 6.0));
        assert_eq!((report.num_tokens, report.padding_tokens), (2 * 197, 2 * 3));
        assert_eq!((report.efficiency, report.efficiency_by_shard), (0.985, 394.0 / 600.0));
        assert_eq!((report.mean_pairs_per_pack, report.mean_images_per_pack), (1.5, 2.0));
        let contents = report.contents;
        assert_eq!((contents.num_images, contents.image_tokens), (8, 240));
        assert_eq!((contents.text_tokens, contents.special_tokens), (2 * 221, 2 * 6));
        assert_eq!(contents.packs_by_images, [0, 2, 0, 2]);
        assert_eq!(contents.documents_by_images, [0, 4, 2]);
        assert_eq!(contents.length_histogram.counts.iter().sum::<u64>(), 6);
        assert_eq!(contents.fill_histogram.counts.iter().sum::<u64>(), 4);
        assert_eq!(report.skipped_images, BTreeMap::from([("one-pixel-image".to_owned(), 4)]));
    }

    #[test]
    fn nothing_gives_zeros() {
        let report = PackerReport::new(vec![], 100);
        assert_eq!((report.num_packs, report.efficiency, report.mean_pairs_per_pack), (0, 0.0, 0.0));
    }
}
