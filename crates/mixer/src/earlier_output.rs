//! What an earlier, unfinished run left among the output shards.

use std::path::Path;

use oqvl_shard_io::{is_cut_short, read_json, remove_if_there};
use oqvl_stage::RunContext;

use crate::MixerError;

/// Takes the marker from an output shard of the run that an earlier one left, if its tar or its table is cut short or the
/// marker speaks of another number of samples than `num_samples`: it is written again then. What is changed in the middle
/// of a file is not seen.
pub(crate) fn unmark_if_cut(run: &RunContext, shard: usize, num_samples: u64) -> Result<(), MixerError> {
    let path = |ending: &str| run.out_dir.join(format!("{shard:08}{ending}"));
    let (tar, table, stats) = (path(".tar"), path(".parquet"), path("_stats.json"));
    if !(tar.exists() && table.exists() && stats.exists()) {
        return Ok(());
    }
    let cut = if is_cut_short(&tar) {
        &tar
    } else if is_cut_short(&table) {
        &table
    } else if !counts(&stats, num_samples) {
        &stats
    } else {
        return Ok(());
    };
    tracing::warn!("{}: an earlier run left it cut short; the shard is written again", cut.display());
    remove_if_there(&stats).map_err(|source| MixerError::Scratch { path: stats, source })
}

fn counts(stats: &Path, num_samples: u64) -> bool {
    read_json::<serde_json::Value>(stats).is_ok_and(|stats| stats["successes"] == num_samples)
}
