//! The second pass: copies the selected samples into output shards of equal size.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use oqvl_shard_io::{Sample, ShardReader, ShardWriter, write_json_atomic};
use oqvl_stage::RunContext;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::MixerError;
use crate::identity::identify;
use crate::pool::ShardScan;

/// The sizes of all output shards, by file name, as the DataComp resharder reads it.
const SIZES_FILE: &str = "sizes.json";

/// `{:08d}_stats.json`: the done-marker of an output shard.
#[derive(Debug, Serialize, Deserialize)]
struct ShardStats {
    /// Samples in the shard.
    successes: u64,
}

/// Consecutive selected samples of one input shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    /// Index of the input shard.
    shard: usize,
    /// Range within the list of its selected positions.
    picks: Range<usize>,
}

/// Writes the output shards of this process, in parallel, and the table of all sizes; returns the number of all
/// output shards. Shards that are there already are left as they are.
pub(crate) fn write_shards(
    pool: &[ShardScan],
    kept: &[Vec<usize>],
    samples_per_shard: usize,
    run: &RunContext,
) -> Result<u64, MixerError> {
    let total: usize = kept.iter().map(Vec::len).sum();
    let num_shards = total.div_ceil(samples_per_shard);
    let samples_of = |shard: usize| shard * samples_per_shard..total.min((shard + 1) * samples_per_shard);
    let progress = run.progress(num_shards as u64, "shards written");
    (0..num_shards).into_par_iter().filter(|shard| run.owns_shard(*shard)).try_for_each(|shard| {
        let segments = segments(kept, samples_of(shard));
        write_shard(&run.out_dir, shard, &segments, pool, kept, run)?;
        progress.inc(1);
        Ok::<(), MixerError>(())
    })?;
    progress.finish();
    let sizes: BTreeMap<String, u64> =
        (0..num_shards).map(|shard| (format!("{shard:08}.tar"), samples_of(shard).len() as u64)).collect();
    write_json_atomic(&run.out_dir.join(SIZES_FILE), &sizes)?;
    Ok(num_shards as u64)
}

fn tar_path(out_dir: &Path, shard: usize) -> PathBuf {
    out_dir.join(format!("{shard:08}.tar"))
}

fn stats_path(out_dir: &Path, shard: usize) -> PathBuf {
    out_dir.join(format!("{shard:08}_stats.json"))
}

/// The selected samples `range`, counted over all input shards, as segments of these.
fn segments(kept: &[Vec<usize>], range: Range<usize>) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut start = 0;
    for (shard, positions) in kept.iter().enumerate() {
        let end = start + positions.len();
        let (first, last) = (range.start.max(start), range.end.min(end));
        if first < last {
            segments.push(Segment { shard, picks: first - start..last - start });
        }
        start = end;
    }
    segments
}

fn write_shard(
    out_dir: &Path,
    shard: usize,
    segments: &[Segment],
    pool: &[ShardScan],
    kept: &[Vec<usize>],
    run: &RunContext,
) -> Result<(), MixerError> {
    let (tar_path, stats_path) = (tar_path(out_dir, shard), stats_path(out_dir, shard));
    if tar_path.exists() && stats_path.exists() {
        return Ok(());
    }
    let mut writer = ShardWriter::create(&tar_path)?;
    for segment in segments {
        let positions = &kept[segment.shard][segment.picks.clone()];
        copy_samples(&pool[segment.shard], positions, &mut writer, run)?;
    }
    let summary = writer.finish()?;
    write_json_atomic(&stats_path, &ShardStats { successes: summary.num_samples })?;
    Ok(())
}

/// Copies the samples at `positions` of one input shard; members go over byte for byte, under the new key.
fn copy_samples(
    scan: &ShardScan,
    positions: &[usize],
    writer: &mut ShardWriter,
    run: &RunContext,
) -> Result<(), MixerError> {
    let changed = || MixerError::InputChanged { path: scan.shard.path.clone() };
    let Some(&first) = positions.first() else { return Ok(()) };
    let mut reader = ShardReader::open_at(&scan.shard.path, scan.samples[first].offset)?;
    let mut next = first;
    for &position in positions {
        run.check_interrupt()?;
        // Passing over a few samples costs less than a new file handle for every gap.
        let sample = reader.nth(position - next).ok_or_else(changed)??;
        next = position + 1;
        let identity = identify(&sample).map_err(|_| changed())?;
        let is_the_one =
            scan.samples[position].offset == sample.offset && scan.samples[position].uid == Ok(identity.uid);
        if !is_the_one {
            return Err(changed());
        }
        let _locations = writer.push(&Sample { key: identity.output_key, ..sample })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The output shards hold every selected sample once, in order, and are full but for the last.
        #[test]
        fn segments_cover_everything_in_order(
            counts in prop::collection::vec(0..7_usize, 0..6),
            samples_per_shard in 1..9_usize,
        ) {
            let kept: Vec<Vec<usize>> = counts.iter().map(|count| (0..*count).collect()).collect();
            let total: usize = counts.iter().sum();
            let mut visited = Vec::new();
            for start in (0..total).step_by(samples_per_shard) {
                let end = total.min(start + samples_per_shard);
                let segments = segments(&kept, start..end);
                prop_assert_eq!(segments.iter().map(|segment| segment.picks.len()).sum::<usize>(), end - start);
                for segment in segments {
                    visited.extend(segment.picks.map(|pick| (segment.shard, pick)));
                }
            }
            let all = kept.iter().enumerate();
            let expected: Vec<_> =
                all.flat_map(|(shard, picks)| (0..picks.len()).map(move |pick| (shard, pick))).collect();
            prop_assert_eq!(visited, expected);
        }
    }
}
