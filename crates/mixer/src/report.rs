//! What the stage reports, and how it is gathered.

use oqvl_stage::{RunContext, Tally};
use serde::{Deserialize, Serialize};

use crate::benchmark_images::Contamination;
use crate::pool::Pool;
use crate::subset::Subset;
use crate::{MixerError, SubsetReport};

/// What the mixer reports. The selection is made over the whole pool, so the counts are those of the whole pool
/// also when a process writes only its share of the output shards, but for those in `share`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixerReport {
    /// Samples of the pool, kept and rejected.
    #[serde(flatten)]
    pub tally: Tally,
    /// The subsets, in configuration order.
    pub subsets: Vec<SubsetReport>,
    /// Every pair of subsets.
    pub overlaps: Vec<OverlapReport>,
    /// Distinct uids in `selected.npy`.
    pub selected_uids: u64,
    /// Output shards of the whole selection; 0 for a metadata folder.
    pub output_shards: u64,
    /// What of that this process had to write, if it worked on a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<ShareReport>,
    /// Which samples were dropped because their image looks like that of an earlier one, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near_duplicates: Option<NearDuplicateReport>,
    /// Which samples look like benchmark images, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decontamination: Option<DecontaminationReport>,
}

/// The output shards of one share, those that an earlier run had finished included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareReport {
    /// Output shards.
    pub output_shards: u64,
    /// Samples in them.
    pub samples: u64,
}

/// How much two subsets share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlapReport {
    /// Names of the two subsets, in configuration order.
    pub between: [String; 2],
    /// Samples in both, before duplicates are dropped.
    pub samples: u64,
}

/// A sample and the image it resembles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMatch {
    /// Uid of the sample, or `{shard}/{key}`.
    pub sample: String,
    /// Uid or `{shard}/{key}` of the earlier sample, or file and place of the benchmark image.
    pub like: String,
    /// Bits of 64 in which their perceptual hashes differ.
    pub distance: u32,
}

/// What came of the search for near-duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearDuplicateReport {
    /// Samples of the pool that have no perceptual hash: no image, or one that cannot be decoded. They are never
    /// near-duplicates.
    pub without_hash: u64,
    /// The first 1000 that were dropped, with the sample that stays.
    pub matches: Vec<ImageMatch>,
}

/// What came of the comparison with benchmark images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecontaminationReport {
    /// Benchmark images that were compared with.
    pub benchmark_images: u64,
    /// Benchmark images that cannot be decoded.
    pub unreadable_images: u64,
    /// Samples of the pool that have no perceptual hash.
    pub without_hash: u64,
    /// Samples of the pool, selected or not, that look like a benchmark image.
    pub samples: u64,
    /// The first 1000 of them.
    pub matches: Vec<ImageMatch>,
}

pub(crate) fn overlaps(subsets: &[Subset]) -> Vec<OverlapReport> {
    let mut overlaps = Vec::new();
    for (index, second) in subsets.iter().enumerate() {
        for first in &subsets[..index] {
            let between = [first.report.name.clone(), second.report.name.clone()];
            overlaps.push(OverlapReport { between, samples: first.rows.overlap(&second.rows) });
        }
    }
    overlaps
}

fn count_without_hash(pool: &Pool, run: &RunContext) -> Result<u64, MixerError> {
    let mut without_hash = 0;
    crate::duplicates::for_each_place(pool, &pool.usable, run, |_, place| {
        without_hash += u64::from(place.image_hash.is_none());
        Ok(())
    })?;
    Ok(without_hash)
}

pub(crate) fn near_duplicates(
    pool: &Pool,
    pairs: &[(u64, u64)],
    run: &RunContext,
) -> Result<NearDuplicateReport, MixerError> {
    let mut matches = Vec::with_capacity(pairs.len());
    for (row, earlier) in pairs {
        let hashes = (pool.place(*row)?.image_hash, pool.place(*earlier)?.image_hash);
        let (Some(hash), Some(other)) = hashes else {
            unreachable!("only hashed images are near-duplicates")
        };
        matches.push(ImageMatch {
            sample: pool.name_of(*row)?,
            like: pool.name_of(*earlier)?,
            distance: (hash ^ other).count_ones(),
        });
    }
    Ok(NearDuplicateReport { without_hash: count_without_hash(pool, run)?, matches })
}

pub(crate) fn decontamination(
    pool: &Pool,
    contamination: Contamination,
    run: &RunContext,
) -> Result<DecontaminationReport, MixerError> {
    let samples = contamination.rows.len();
    let matches = contamination
        .matches
        .into_iter()
        .map(|(row, like, distance)| Ok(ImageMatch { sample: pool.name_of(row)?, like, distance }));
    Ok(DecontaminationReport {
        benchmark_images: contamination.num_images,
        unreadable_images: contamination.num_unreadable,
        without_hash: count_without_hash(pool, run)?,
        samples,
        matches: matches.collect::<Result<_, MixerError>>()?,
    })
}
